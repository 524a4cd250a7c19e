"""The root port in front of a card, as Linux's own drivers see it. Argument: what is tried."""

import subprocess
import sys
from pathlib import Path

from tests.host.inside.common import sh, wait_for, wait_until

from softcard.bus.host import HostBus, HostSlot
from softcard.cards.nvme import Nvme
from softcard.model.link import ResetKind
from softcard.model.options import Size
from softcard.pcie.capabilities.aer import ErrorMessage

DISK = "/dev/nvme0n1"
READ = f"dd if={DISK} of=/dev/null bs=4k count=10 iflag=direct status=none"


class Disk(Nvme):
    """Notes how it was reset."""

    def __init__(self) -> None:
        super().__init__(size=Size(64 << 20))
        self.resets: list[ResetKind] = []

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)
        super().on_reset(kind)


def count(slot: HostSlot, kind: str, error: str) -> int:
    lines = Path(slot.sysfs, f"aer_dev_{kind}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == error)


def reads() -> bool:
    return subprocess.run(["/bin/sh", "-c", READ], stderr=subprocess.DEVNULL).returncode == 0


def link(card: Disk, slot: HostSlot) -> None:
    port = Path(slot.sysfs).resolve().parent
    for device in (Path(slot.sysfs), port):
        print(Path(device, "current_link_speed").read_text().strip())
        print("x" + Path(device, "current_link_width").read_text().strip())


def errors(card: Disk, slot: HostSlot) -> None:
    aer = card.error_reporting
    aer.correctable_status.bad_tlp = 1
    slot.send_error(ErrorMessage.CORRECTABLE)
    wait_until(lambda: count(slot, "correctable", "BadTLP") == 1)
    aer.uncorrectable_status.completion_timeout = 1
    slot.send_error(ErrorMessage.NON_FATAL)
    wait_until(lambda: count(slot, "nonfatal", "CmpltTO") == 1)
    wait_until(reads)
    card.resets.clear()
    slot.send_error(ErrorMessage.FATAL)
    wait_until(lambda: ResetKind.HOT in card.resets)
    wait_until(reads)


def resets(card: Disk, slot: HostSlot) -> None:
    for method, kind in (("flr", ResetKind.FLR), ("bus", ResetKind.HOT)):
        card.resets.clear()
        Path(slot.sysfs, "reset_method").write_text(method)
        Path(slot.sysfs, "reset").write_text("1")
        assert card.resets == [kind], card.resets
        wait_until(reads)


def power(card: Disk, slot: HostSlot) -> None:
    """The slot is turned off and on again by its driver, with the card in it."""
    switch = Path("/sys/bus/pci/slots", sh("ls /sys/bus/pci/slots | grep -v ^0").strip(), "power")
    switch.write_text("0")
    wait_for(slot.sysfs, exists=False)
    switch.write_text("1")
    wait_for(slot.sysfs)
    wait_for(DISK)
    wait_until(reads)


def sleep(card: Disk, slot: HostSlot) -> None:
    """Asleep, nothing answers: neither the card nor what the kernel answers by itself."""
    bar = Path(slot.sysfs, "resource0")
    sh(f"echo {slot.address} > /sys/bus/pci/drivers/nvme/unbind")
    enable = f"setpci -s {slot.address} COMMAND=2"
    for asleep, awake in (("CAP_PM+4.B=3", "CAP_PM+4.B=0"), ("COMMAND=0", "COMMAND=2")):
        sh(enable)
        assert register(bar, 0x08) == 0x00010400  # the controller's version
        assert register(bar, 0x2000) != 0xFFFFFFFF  # the table of MSI-X
        sh(f"setpci -s {slot.address} {asleep}")
        assert register(bar, 0x08) == register(bar, 0x2000) == 0xFFFFFFFF
        sh(f"setpci -s {slot.address} {awake}")


def register(bar: Path, offset: int) -> int:
    program = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_SYNC);"
        "print(memoryview(mmap.mmap(fd, 16384)).cast('I')[int(sys.argv[2]) // 4])"
    )
    # Another process: while it waits for the register, it would keep the card from answering.
    return int(subprocess.check_output([sys.executable, "-c", program, str(bar), str(offset)]))


with HostBus() as bus:
    card = Disk()
    slot = bus.plug(card)
    sh("modprobe nvme")
    wait_for(DISK)
    {each.__name__: each for each in (link, errors, resets, power, sleep)}[sys.argv[1]](card, slot)
    slot.unplug()
