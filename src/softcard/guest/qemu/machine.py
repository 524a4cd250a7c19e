"""The virtual machine: QEMU's command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from softcard.guest.qemu.initramfs import ROOT_TAG

SLOTS = 8
PORTS_DEVICE = 0x10
CHANNEL = "/dev/vport0p1"
"""The agent's channel, as the guest names it."""

# Seconds that QEMU waits longer than a server does.
PATIENCE, NO_LIMIT = 5.0, 1e6
CLIENT = "vfio-user-pci"
MACHINE = "q35,memory-backend=memory,usb=off,smbus=off,sata=off,vmport=off,i8042=off"


@dataclass(frozen=True)
class Accelerator:
    """How the guest's processor comes about.

    Attributes:
        name: what people call it; QEMU does so in lower case.
        cpu: the processor, as QEMU's `-cpu` has it.
        processors: how many the guest gets.
    """

    name: str
    cpu: str
    processors: int

    @property
    def arguments(self) -> list[str]:
        """QEMU's words for it."""
        return ["-accel", self.name.lower(), "-cpu", self.cpu, "-smp", f"{self.processors}"]


# A second processor makes an emulated guest slower: it has to lock, and so does QEMU.
TCG = Accelerator("TCG", "max", 1)
KVM = Accelerator("KVM", "host", 2)


def device_arguments(
    slot: int, paths: Sequence[Path], completion_timeout: float
) -> list[dict[str, object]]:
    """The functions of a card as QEMU wants them, in the order in which they have to come.

    Function 0 comes last: with it, a running guest sees the whole card.

    Args:
        slot: 0 to 7.
        paths: the sockets of the functions, at most 8.
        completion_timeout: seconds after which the server itself gives up on its card; 0 for never.
    """
    patience = completion_timeout + PATIENCE if completion_timeout else NO_LIMIT
    return [
        {
            "driver": CLIENT,
            "id": device_id(slot, function),
            "bus": port_id(slot),
            "addr": f"0.{function}",
            "x-msg-timeout": round(patience * 1000),
            "multifunction": len(paths) > 1 and function == 0,
            "socket": {"type": "unix", "path": str(path)},
        }
        for function, path in reversed(list(enumerate(paths)))
    ]


def port_id(slot: int) -> str:
    """QEMU's name for a slot."""
    return f"slot{slot}"


def device_id(slot: int, function: int) -> str:
    """QEMU's name for a function of a card."""
    return f"card{slot}.{function}"


def machine_arguments(
    *,
    accelerator: Accelerator,
    memory: int,
    kernel: Path,
    initramfs: Path,
    command_line: str,
    channel: int,
    monitor: int,
    cards: Iterable[dict[str, object]],
) -> list[str]:
    """QEMU's arguments.

    Args:
        accelerator: how the processor comes about.
        memory: bytes.
        kernel, initramfs: files.
        command_line: the kernel's.
        channel, monitor: inherited descriptors of connected sockets.
        cards: from `device_arguments`.
    """
    arguments = [
        "-nodefaults", "-no-user-config", "-display", "none",
        "-M", MACHINE, *accelerator.arguments,
        # Shared, so that cards reach it by themselves.
        "-object", f"memory-backend-memfd,id=memory,size={memory},share=on",
        "-m", f"{memory}B",
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", command_line,
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-chardev", f"socket,id=monitor,fd={monitor}", "-qmp", "chardev:monitor",
        "-chardev", f"socket,id=channel,fd={channel}",
        "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel",
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", f"virtio-9p-pci,fsdev=root,mount_tag={ROOT_TAG}",
    ]  # fmt: skip
    for slot in range(SLOTS):
        port = {
            "driver": "pcie-root-port",
            "id": port_id(slot),
            "chassis": slot + 1,
            "addr": f"{PORTS_DEVICE:x}.{slot}",
            "multifunction": slot == 0,
        }
        arguments += ["-device", json.dumps(port)]
    for card in cards:
        arguments += ["-device", json.dumps(card)]
    return arguments


def address(slot: int, function: int = 0) -> str:
    """The PCI address of a card's function in the guest: firmware numbers buses by their ports."""
    return f"0000:{slot + 1:02x}:00.{function}"
