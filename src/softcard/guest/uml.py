"""The embedded Linux: a User Mode Linux process with the host's own root file system."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from softcard.bus.uml import UmlBus
from softcard.errors import GuestError, UsageError
from softcard.guest.channel import Channel
from softcard.guest.guest import AGENT, Guest, die_with_parent
from softcard.guest.kernel import VIRTIO_PCIDEV_ID, Kernel, ensure_kernel
from softcard.guest.log import KernelLog

BOOT_TIMEOUT = 60.0
END_TIMEOUT = 10.0
MIN_MEMORY = 64 << 20
MCONSOLE = struct.Struct("<III")
MCONSOLE_MAGIC, MCONSOLE_VERSION, MCONSOLE_TEXT = 0xCAFEBABE, 2, 512
MCONSOLE_REPLY = struct.Struct("<III")
# The card must be allowed to be slow, or stopped in a debugger: softcard has its own time-out.
NO_DELAY_LIMIT = 0x7FFFFFFF
SECCOMP_WORKS = "seccomp filters can be installed...OK"
FORBIDDEN = re.compile(r"check_(ptrace|sysemu)|(start|stop)_ptraced_child")

log = logging.getLogger("softcard.guest")


class UmlGuest(Guest):
    """Boots the embedded Linux with the cards of `bus`; a context manager that ends it.

    Args:
        bus: the bus behind which it boots; one of its own when left out.
        kernel: the kernel; the one that softcard builds when left out.
        memory: bytes of memory, taken only as far as they are used.
        arguments: further words for the kernel's command line.
        echo: called with each line of the kernel log as it comes.

    Raises:
        GuestError: it does not come up; with the end of its log.
    """

    def __init__(
        self,
        bus: UmlBus | None = None,
        *,
        kernel: Kernel | None = None,
        memory: int = 512 << 20,
        arguments: Sequence[str] = (),
        echo: Callable[[str], None] | None = None,
    ) -> None:
        if memory < MIN_MEMORY:
            raise UsageError(
                f"{memory} bytes of memory are too few for a guest: give at least {MIN_MEMORY}"
            )
        self.bus = bus if bus is not None else UmlBus()
        self._owns_bus = bus is None
        self._folder = tempfile.TemporaryDirectory(prefix="softcard-guest-")
        self._ending = False
        try:
            kernel = kernel or ensure_kernel()
            stream = self._start(kernel, memory, arguments, echo)
            super().__init__(Channel(stream, self._why_gone), self.log)
            self._wait_until_ready()
            self.bus.attach(self)
        except BaseException:
            self.close()
            raise

    def _start(
        self,
        kernel: Kernel,
        memory: int,
        arguments: Sequence[str],
        echo: Callable[[str], None] | None,
    ) -> socket.socket:
        ours, theirs = socket.socketpair()
        log_read, log_write = os.pipe()
        command = [
            str(kernel.image),
            f"mem={memory}",
            f"umid={self._umid}",
            f"uml_dir={self._folder.name}",
            "rootfstype=hostfs", "root=/dev/root", "ro", "hostfs_readonly",
            "con=null", "con0=null,fd:1", f"con1=fd:{theirs.fileno()}",
            "seccomp=auto", "panic=-1",
            f"virtio_pcidev.max_delay_us={NO_DELAY_LIMIT}",
            *(
                f"virtio_uml.device={slot.path}:{VIRTIO_PCIDEV_ID}:{slot.number}"
                for slot in self.bus.slots
            ),
            *arguments,
            f"init={_real(sys.executable)}",
            "--", "-I", "-S", "-B", str(AGENT), "/dev/tty1",
        ]  # fmt: skip
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log_write, stderr=log_write,
                pass_fds=[theirs.fileno()], start_new_session=True,
                preexec_fn=die_with_parent(),
            )  # fmt: skip
        except OSError as error:
            os.close(log_read)
            ours.close()
            raise GuestError(f"cannot start {kernel.image}: {error.strerror}") from None
        finally:
            os.close(log_write)
            theirs.close()
        self.log = KernelLog(log_read, echo)
        return ours

    @property
    def _umid(self) -> str:
        return "guest"

    def _wait_until_ready(self) -> None:
        if not self._channel.wait_until_ready(BOOT_TIMEOUT):
            raise GuestError(
                f"the guest has not come up within {BOOT_TIMEOUT:g} s; its log ends with:\n"
                f"{self.log.tail()}"
            )
        if self._channel.gone:
            raise GuestError(self._why_gone())
        if not self.uses_seccomp:
            log.warning(
                "this machine lets nobody install seccomp filters: the guest uses ptrace, which "
                "is slower"
            )

    @property
    def uses_seccomp(self) -> bool:
        """Whether the kernel runs its processes by seccomp; otherwise it uses ptrace."""
        return any(SECCOMP_WORKS in line for line in self.log.lines)

    def _why_gone(self) -> str:
        if self._ending:
            return "the guest has been ended"
        try:
            status = self.process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"the guest's agent has ended; the kernel log ends with:\n{self.log.tail()}"
        self.log.join(1)
        if any(FORBIDDEN.match(line) for line in self.log.lines):
            return (
                "this machine forbids both seccomp and ptrace, and the guest needs one of them: "
                "in a container, allow it with --cap-add SYS_PTRACE or a seccomp profile; its log "
                f"ends with:\n{self.log.tail()}"
            )
        return f"the guest has died (status {status}); its log ends with:\n{self.log.tail()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the guest at once, as by pulling its power cord, and free all resources."""
        self._ending = True
        self.bus.linux = None
        if hasattr(self, "process"):
            # A group of our own: the kernel, and the processes that stand for its processes.
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.log.join(END_TIMEOUT)
        if hasattr(self, "_channel"):
            self._channel.close()
        if self._owns_bus:
            self.bus.close()
        self._folder.cleanup()

    # What the bus needs.

    def add_card(self, path: Path, number: int) -> None:
        """Connect the card that is served at `path`, as platform device `number`."""
        device = f"virtio_uml.device={path}:{VIRTIO_PCIDEV_ID}:{number}"
        answer = self._mconsole(f"config {device}")
        if answer:
            raise GuestError(f"the guest refuses the card at {path}: {answer}")

    def remove_card(self, number: int, timeout: float) -> None:
        """Have the drivers let go of platform device `number`."""
        answer = self._mconsole(f"remove virtio_uml.device{number}", timeout)
        if answer:
            raise GuestError(f"the guest does not let go of the card in slot {number}: {answer}")

    def _mconsole(self, command: str, timeout: float = END_TIMEOUT) -> str:
        """A request to the kernel's management console; what went wrong, or nothing."""
        text = command.encode()
        if len(text) >= MCONSOLE_TEXT:
            raise GuestError(f"the command for the guest's console is too long: {command}")
        with (
            tempfile.TemporaryDirectory(prefix="softcard-mc-") as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console,
        ):
            console.bind(f"{folder}/s")
            console.settimeout(timeout)
            request = MCONSOLE.pack(MCONSOLE_MAGIC, MCONSOLE_VERSION, len(text))
            try:
                console.sendto(
                    request + text.ljust(MCONSOLE_TEXT, b"\0"),
                    f"{self._folder.name}/{self._umid}/mconsole",
                )
                reply = console.recv(MCONSOLE_REPLY.size + MCONSOLE_TEXT)
            except OSError as error:
                raise GuestError(
                    f"the guest's console does not answer ({error}); the kernel log ends with:\n"
                    f"{self.log.tail()}"
                ) from None
        failed, _more, length = MCONSOLE_REPLY.unpack_from(reply)
        said = reply[MCONSOLE_REPLY.size :][:length].rstrip(b"\0").decode(errors="replace")
        return said or "failed" if failed else ""


def _real(path: str) -> str:
    return os.path.realpath(path)
