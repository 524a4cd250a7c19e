"""Eventfds that a client has given us."""

from __future__ import annotations

import errno
import fcntl
import os
import select
from pathlib import Path


class EventFd:
    """An eventfd of the client's.

    Args:
        fd: the descriptor; it is the caller's still when this raises.

    Raises:
        OSError: it is no eventfd.
    """

    __slots__ = ("_poll", "fd")

    def __init__(self, fd: int) -> None:
        # What is written to anything else may wait for ever, or do harm.
        if str(Path(f"/proc/self/fd/{fd}").readlink()) != "anon_inode:[eventfd]":
            raise OSError(errno.EINVAL, "a descriptor for an interrupt is no eventfd")
        self.fd = fd
        self._poll: select.poll | None = None
        if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN | select.POLLOUT)

    def signal(self) -> None:
        """Add one; a counter that is full has been signalled for sure."""
        if not self._ready(select.POLLOUT):
            return
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            pass

    def take(self) -> bool:
        """Take what was added; whether there was anything."""
        if not self._ready(select.POLLIN):
            return False
        try:
            return bool(os.eventfd_read(self.fd))
        except BlockingIOError:
            return False

    def _ready(self, event: int) -> bool:
        """Whether reading or writing would not wait."""
        return self._poll is None or any(came & event for _, came in self._poll.poll(0))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
