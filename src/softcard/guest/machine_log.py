"""The log of the machine's own kernel as a stream of lines."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from softcard.guest.log import KernelLog

KMSG = "/dev/kmsg"
# Longer than any record.
RECORD = 1 << 13


class MachineLog(KernelLog):
    """Collects what this machine's kernel says from now on.

    Where this user may not read that, there is one line that says so.

    Args:
        echo: called with each line as it comes.

    Attributes:
        readable: whether this user may read the kernel's log.
    """

    def __init__(self, echo: Callable[[str], None] | None = None) -> None:
        self._why_not = ""
        try:
            fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(fd, 0, os.SEEK_END)
        except OSError as error:
            fd, self._why_not = -1, error.strerror or "it fails"
        self.readable = fd >= 0
        self._asked_read, self._asked_write = os.pipe()
        self._caught_up = threading.Event()
        super().__init__(fd, echo)

    def _read(self) -> None:
        if not self.readable:
            self._add([f"(the kernel's log cannot be read here: {self._why_not})".encode()])
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._asked_read, select.POLLIN)
        ending = False
        while not ending:
            asked = self._asked_read in (fd for fd, _ in poll.poll())
            if asked:
                # Before the rest is read: what was said before that was asked.
                ending = not os.read(self._asked_read, 1)
            self._add(self._records())
            if asked:
                self._caught_up.set()

    def _records(self) -> list[bytes]:
        """What has come since, as a console would show it."""
        found: list[bytes] = []
        while True:
            try:
                record = os.read(self._fd, RECORD)
            except BlockingIOError:
                return found
            except BrokenPipeError:
                found.append(b"(here, lines of the kernel's log are lost: it was too fast)")
                continue
            head, _, text = record.partition(b";")
            seconds = int(head.split(b",")[2]) / 1e6
            found.append(b"[%12.6f] " % seconds + text.partition(b"\n")[0])

    def catch_up(self, timeout: float) -> None:
        """Return when everything that the kernel has said before is here.

        Raises:
            TimeoutError: it is not within `timeout` seconds.
        """
        if not self.readable:
            return
        self._caught_up.clear()
        os.write(self._asked_write, b"x")
        if not self._caught_up.wait(timeout):
            raise TimeoutError(f"the kernel's log is not read within {timeout:g} s")

    def close(self) -> None:
        """Read no more."""
        if self._asked_write < 0:
            return
        os.close(self._asked_write)
        self._asked_write = -1
        self._thread.join()
        os.close(self._asked_read)
        if self.readable:
            os.close(self._fd)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
