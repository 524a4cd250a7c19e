"""The guest's kernel log as a stream of lines."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator

TAIL = 25
LONG_TAIL = 80
PROBLEM = re.compile(
    r"\b(WARNING:|BUG:|kernel BUG at|BUG [\w-]+ \(|Oops\b|Kernel panic|general protection|"
    r"Call Trace:|INFO: task .* blocked|INFO: trying to register non-static key|"
    r"possible (circular|recursive) locking|possible irq lock inversion|inconsistent lock state|"
    r"suspicious RCU|KASAN|KCSAN|UBSAN|ODEBUG: .* object type|kmemleak: \d+ new suspected|"
    r"rcu_\w+ (self-)?detected|soft lockup|Modules linked in:)"
)


class KernelLog:
    """Collects what the guest's console prints.

    Args:
        fd: the console's output; closed when it ends.
        echo: called with each line as it comes.
    """

    def __init__(self, fd: int, echo: Callable[[str], None] | None = None) -> None:
        self._fd = fd
        self._echo = echo
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="guest log", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            self._add(lines)
        if rest:
            self._add([rest])
        os.close(self._fd)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add(self, raw: list[bytes]) -> None:
        lines = [line.decode(errors="replace").rstrip("\r") for line in raw]
        with self._changed:
            self._lines += lines
            self._changed.notify_all()
        if self._echo is not None:
            for line in lines:
                self._echo(line)

    @property
    def lines(self) -> list[str]:
        """Every line so far."""
        with self._changed:
            return list(self._lines)

    def tail(self, count: int = TAIL) -> str:
        """The last lines, for messages; more of them where a fault begins shortly before."""
        lines = self.lines[-LONG_TAIL:]
        faults = (n for n, line in enumerate(lines) if PROBLEM.search(line))
        start = min(next(faults, len(lines)), max(len(lines) - count, 0))
        return "\n".join(lines[start:])

    def position(self) -> int:
        """Where the log is now, for `since`, `problems` and `wait_for`."""
        with self._changed:
            return len(self._lines)

    def since(self, position: int) -> list[str]:
        """The lines from `position` on."""
        return self.lines[position:]

    def problems(self, position: int = 0) -> list[str]:
        """Lines that report a fault of the kernel: warnings, oopses, lockdep, hung tasks."""
        return [line for line in self.since(position) if PROBLEM.search(line)]

    def follow(self, position: int = 0) -> Iterator[str]:
        """Every line from `position` on, as they come, until the guest ends."""
        while True:
            with self._changed:
                while len(self._lines) <= position and not self._ended:
                    self._changed.wait()
                if len(self._lines) <= position:
                    return
                line = self._lines[position]
            position += 1
            yield line

    def wait_for(self, pattern: str, timeout: float = 10.0, position: int = 0) -> str:
        """The first line from `position` on that `pattern` (a regular expression) finds.

        Raises:
            TimeoutError: none has come within `timeout` seconds, or the guest has ended.
        """
        search = re.compile(pattern).search
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for line in self._lines[position:]:
                    if search(line):
                        return line
                position = len(self._lines)
                left = deadline - time.monotonic()
                if left <= 0 or self._ended or not self._changed.wait(left):
                    raise TimeoutError(f"the kernel log has no line with {pattern!r}")

    def join(self, timeout: float) -> None:
        """Wait until the guest's last line has been read."""
        self._thread.join(timeout)
