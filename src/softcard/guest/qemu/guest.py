"""A stock Linux in QEMU, with this machine's own root file system."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from softcard.errors import GuestError
from softcard.guest.channel import Channel
from softcard.guest.guest import AGENT, Guest, die_with_parent
from softcard.guest.log import KernelLog
from softcard.guest.qemu import machine
from softcard.guest.qemu.accelerator import accelerator_for
from softcard.guest.qemu.initramfs import MODULES, failed_step, initramfs
from softcard.guest.qemu.kernel import need_kernel
from softcard.guest.qemu.modules import module_images
from softcard.guest.qemu.program import need_qemu

if TYPE_CHECKING:
    from softcard.guest.qemu.bus import QemuBus, QemuSlot
    from softcard.guest.qemu.qmp import Monitor

# An emulated processor takes some five seconds, on a machine with nothing else to do.
BOOT_TIMEOUT = 180.0
END_TIMEOUT = 10.0
GREETING_BYTES = 16
# It says the one of every card, and the other of those that were pulled.
HARMLESS = ("Could not enable error recovery", "stuck in D3")
INIT_ENDED = re.compile(r"Attempted to kill init! exitcode=0x0000(\w\w)00")
PANIC = "---[ end Kernel panic"
# Nothing here is to be protected from the guest's own programs, nor are there any to be confined.
COMMAND_LINE = (
    "console=ttyS0 mitigations=off lsm=capability audit=0 tsc=reliable no_timer_check "
    "cryptomgr.notests random.trust_cpu=on"
)

log = logging.getLogger("softcard.guest.qemu")


class QemuGuest(Guest):
    """Boots a stock Linux with the cards of `bus`; `QemuBus.boot` makes it.

    Attributes:
        kernel: what was booted.
        qemu: what it runs in.
        accelerator: how its processor comes about.
        messages: what QEMU itself has printed.
        monitor: QEMU's own control, by QMP.
    """

    def __init__(self, bus: QemuBus) -> None:
        self.bus = bus
        self.qemu = need_qemu()
        self.kernel = bus.kernel or need_kernel()
        self.accelerator = accelerator_for(self.qemu, self.kernel)
        if bus.processors is not None:
            self.accelerator = replace(self.accelerator, processors=bus.processors)
        if bus.cpu is not None:
            self.accelerator = replace(self.accelerator, cpu=bus.cpu)
        log.info(
            "Linux %s boots in QEMU %s with %s",
            self.kernel.release, self.qemu.version, self.accelerator.name,
        )  # fmt: skip
        self._ending = False
        self._folder = tempfile.TemporaryDirectory(prefix="softcard-guest-")
        self._greeting = secrets.token_bytes(GREETING_BYTES)
        self._modules = 0
        try:
            stream, monitor = self._start()
            super().__init__(Channel(stream, self._why_gone, self._greeting), self.log)
            self.monitor = self._connect(monitor)
            self._wait_until_ready(1)
        except BaseException:
            self.close()
            raise
        bus.guest = self

    def _start(self) -> tuple[socket.socket, socket.socket]:
        images = module_images(self.kernel.modules, MODULES) if self.kernel.modules else []
        self._modules = len(images)
        archive = Path(self._folder.name, "initramfs")
        archive.write_bytes(initramfs(images))
        channel, its_channel = socket.socketpair()
        monitor, its_monitor = socket.socketpair()
        log_read, log_write = os.pipe()
        messages_read, messages_write = os.pipe()
        command = [
            *self.qemu.command,
            *machine.machine_arguments(
                accelerator=self.accelerator,
                memory=self.bus.memory,
                kernel=self.kernel.bootable,
                initramfs=archive,
                command_line=self._command_line(),
                channel=its_channel.fileno(),
                monitor=its_monitor.fileno(),
                cards=[device for slot in self.bus.slots for device in self._devices(slot)],
            ),
        ]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log_write, stderr=messages_write,
                pass_fds=[its_channel.fileno(), its_monitor.fileno()],
                env={**os.environ, **self.qemu.environment},
                start_new_session=True, preexec_fn=die_with_parent(),
            )  # fmt: skip
        except OSError as error:
            for fd in (log_read, messages_read):
                os.close(fd)
            for ours in (channel, monitor):
                ours.close()
            raise GuestError(f"cannot start {command[0]}: {error.strerror}") from None
        finally:
            for fd in (log_write, messages_write):
                os.close(fd)
            for theirs in (its_channel, its_monitor):
                theirs.close()
        self.log = KernelLog(log_read, self._heard)
        self.messages = KernelLog(messages_read, self._complained)
        return channel, monitor

    def _devices(self, slot: QemuSlot) -> list[dict[str, object]]:
        return machine.device_arguments(slot.number, slot.paths, self.bus.completion_timeout)

    def _command_line(self) -> str:
        words = [COMMAND_LINE, *self.bus.arguments, "--"]
        program = [
            os.path.realpath(sys.executable), "-I", "-S", "-B",
            str(AGENT), machine.CHANNEL, f"greeting={self._greeting.hex()}",
        ]  # fmt: skip
        if self.kernel.modules:
            program.append(f"modules={self.kernel.modules}")
        return " ".join([*words, *(f'"{word}"' if " " in word else word for word in program)])

    def _heard(self, line: str) -> None:
        if self.bus.echo is not None:
            self.bus.echo(line)
        if PANIC in line:
            # It would stand still from now on.
            self.process.kill()

    def _complained(self, line: str) -> None:
        if not any(text in line for text in HARMLESS):
            log.warning("QEMU says: %s", line)

    def _connect(self, monitor: socket.socket) -> Monitor:
        from softcard.guest.qemu.qmp import Monitor

        try:
            return Monitor(monitor)
        except GuestError:
            if self._has_ended():
                raise GuestError(self._why_gone()) from None
            raise

    def _wait_until_ready(self, start: int) -> None:
        if not self._channel.wait_until_ready(BOOT_TIMEOUT, start=start):
            raise GuestError(
                f"the guest has not come up within {BOOT_TIMEOUT:g} s; its log ends with:\n"
                f"{self.log.tail()}"
            )
        if self._channel.gone:
            raise GuestError(self._why_gone())

    def _has_ended(self) -> bool:
        try:
            self.process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _why_gone(self) -> str:
        if self._ending:
            return "the guest has been ended"
        if not self._has_ended():
            return f"the guest's agent has ended; the kernel log ends with:\n{self.log.tail()}"
        self.log.join(1)
        self.messages.join(1)
        status = self.process.returncode
        if not self.log.lines:
            return f"QEMU has ended (status {status}); it said:\n{self.messages.tail()}"
        if (failed := self._failed_step()) is not None:
            return f"the guest's init cannot {failed}; its log ends with:\n{self.log.tail()}"
        said = f"\nQEMU said:\n{self.messages.tail()}" if self.messages.lines else ""
        return f"the guest has died (status {status}); its log ends with:\n{self.log.tail()}{said}"

    def _failed_step(self) -> str | None:
        """What the initramfs could not do; None where it is not what has failed."""
        ends = (INIT_ENDED.search(line) for line in self.log.lines)
        status = next((int(end[1], 16) for end in ends if end), None)
        if status is None or self._channel.starts:
            return None
        return failed_step(status, self._modules)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the guest at once, as by pulling its power cord, and free all resources."""
        self._ending = True
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait()
            self.log.join(END_TIMEOUT)
            self.messages.join(END_TIMEOUT)
        if hasattr(self, "monitor"):
            self.monitor.close()
        if hasattr(self, "_channel"):
            self._channel.close()
        self._folder.cleanup()
        self.bus.guest_has_ended()

    def reboot(self) -> None:
        """Have Linux restart the machine, and wait until it is up again; the cards see a reset.

        Raises:
            GuestError: it does not come up.
        """
        self._restart(lambda: self._channel.tell("reboot"))

    def reset(self) -> None:
        """Press the reset button, and wait until Linux is up again.

        Raises:
            GuestError: it does not come up.
        """
        self._restart(lambda: self.monitor.execute("system_reset"))

    def _restart(self, how: Callable[[], object]) -> None:
        start = self._channel.starts + 1
        how()
        self._wait_until_ready(start)

    # What the bus needs.

    def add_card(self, slot: QemuSlot) -> None:
        """Plug a card into the running guest; returns when it is enumerated."""
        for device in self._devices(slot):
            self.monitor.execute("device_add", **device)
        self.wait_for_path(slot.sysfs)

    def remove_card(self, slot: QemuSlot, timeout: float) -> None:
        """Have the drivers let go of a card, and take it out of QEMU."""
        device = machine.device_id(slot.number, 0)
        with self.monitor.expecting(
            "DEVICE_DELETED", lambda data: data.get("device") == device
        ) as deleted:
            self.monitor.execute("device_del", id=device)
            if not deleted.wait(timeout):
                raise GuestError(self._holds(slot, timeout))

    def forget_card(self, slot: QemuSlot, timeout: float) -> None:
        """Have the drivers let go of a card, and Linux forget it; for QEMU, it stays."""
        script = 'for d in "$1"*; do echo 1 > "$d"/remove; done'
        card = slot.sysfs.removesuffix("0")
        removal = self.start(["/bin/sh", "-c", script, "sh", card])
        try:
            removal.wait(timeout)
        except TimeoutError:
            raise GuestError(self._holds(slot, timeout)) from None

    def _holds(self, slot: QemuSlot, timeout: float) -> str:
        return (
            f"the guest does not let go of the card in slot {slot.number} within {timeout:g} s; "
            f"the kernel log ends with:\n{self.log.tail()}"
        )
