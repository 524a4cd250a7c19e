"""A socket that carries messages and file descriptors, in the pieces that they come in."""

from __future__ import annotations

import array
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from softcard.wire.vfio_user import MAX_FDS

RECEIVE_SIZE = 1 << 16
SEND_TIMEOUT = 5.0
MAX_HELD_FDS = 4 * MAX_FDS
_FD_SIZE = array.array("i").itemsize
# The number itself: an enumeration's member costs more than the flag is worth.
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
# One more than allowed shows that there were too many.
_ANCILLARY = socket.CMSG_SPACE((MAX_FDS + 1) * _FD_SIZE)

Data = bytes | bytearray | memoryview
# By descriptor, what to call when it is readable; False where that is enough.
Beside = Mapping[int, Callable[[], bool]]


class HungUpError(Exception):
    """The peer has closed the connection, or takes nothing any more."""


class MessageStream:
    """Received bytes in one buffer, with the descriptors that came with them.

    The owner reads `buffer[:length]`, takes whole messages from its start, and calls `consume`.

    Args:
        sock: a connected stream socket; descriptors pass over UNIX sockets only.

    Attributes:
        buffer: what was received and not consumed, and room behind it.
        view: the same.
        length: bytes of it.
        has_fds: descriptors have come that nobody has taken.
        passes_fds: descriptors can pass at all.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.buffer = bytearray(RECEIVE_SIZE)
        self.length = 0
        self._socket = sock
        self._send_lock = threading.Lock()
        self.has_fds = False
        self.passes_fds = sock.family == socket.AF_UNIX
        self._fds: list[tuple[int, list[int]]] = []
        self.view = memoryview(self.buffer)
        sock.setblocking(False)
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def receive(self) -> bool:
        """Receive once, without waiting; whether anything came.

        Raises:
            HungUpError: the peer has closed the connection, or sends descriptors in great number.
        """
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into(
                [self.view[self.length :]] if self.length else [self.buffer],
                _ANCILLARY,
                _CLOSE_ON_EXEC,
            )
        except BlockingIOError:
            return False
        except OSError as error:
            raise HungUpError(error.strerror) from None
        if not count:
            raise HungUpError("the peer has closed the connection")
        self.length += count
        if ancillary:
            fds = _descriptors(ancillary)
            if fds:
                self._fds.append((self.length, fds))
                self.has_fds = True
                if sum(len(held) for _, held in self._fds) > MAX_HELD_FDS:
                    raise HungUpError("the peer sends descriptors without end")
            if flags & socket.MSG_CTRUNC:
                raise HungUpError(
                    f"descriptors were lost: it sent more than {MAX_FDS}, or too many files are "
                    "open in this process"
                )
        return True

    @property
    def holds_more(self) -> bool:
        """Whether something was received that nothing will announce any more."""
        return False

    def wait(self, timeout: float | None) -> bool:
        """Wait until something can be received; whether it can."""
        return bool(self._readable.poll(None if timeout is None else max(timeout, 0) * 1000))

    def make_room(self, size: int) -> None:
        """There must be room for a message of `size` bytes at the start of the buffer."""
        if size > len(self.buffer):
            grown = bytearray(max(size, 2 * len(self.buffer)))
            grown[: self.length] = self.view[: self.length]
            self.buffer, self.view = grown, memoryview(grown)

    def take_fds(self, start: int, end: int) -> list[int]:
        """The descriptors of the message at `buffer[start:end]`, which are the caller's now.

        A receive never goes on behind the piece that descriptors came with, so they belong to the
        message that its last byte is in.
        """
        taken = [fd for at, fds in self._fds if start < at <= end for fd in fds]
        self._fds = [entry for entry in self._fds if not start < entry[0] <= end]
        self.has_fds = bool(self._fds)
        return taken

    def consume(self, count: int) -> None:
        """The first `count` bytes have been dealt with."""
        rest = self.length - count
        if rest:
            self.buffer[:rest] = self.buffer[count : self.length]
        self.length = rest
        if self._fds:
            self._fds = [(at - count, fds) for at, fds in self._fds]

    def send(
        self,
        data: bytes | bytearray | memoryview,
        fds: Sequence[int] = (),
        *,
        beside: Beside | None = None,
    ) -> None:
        """Send all of `data`, from any thread; the descriptors go with its first byte.

        Args:
            data: what to send.
            fds: descriptors.
            beside: what to look after while the peer takes nothing, for it may wait for just that;
                only for the thread that receives.

        Raises:
            HungUpError: the peer has gone, or has taken nothing for 5 s.
        """
        rest: Data = data
        with self._send_lock:
            try:
                while True:
                    try:
                        sent = self._send_some(rest, fds)
                        if sent == len(rest):
                            return
                        rest, fds = memoryview(rest)[sent:], ()
                    except BlockingIOError:
                        self._wait_writable(beside or {})
            except OSError as error:
                raise HungUpError(error.strerror) from None

    def _send_some(self, data: Data, fds: Sequence[int]) -> int:
        if fds:
            return socket.send_fds(self._socket, [data], list(fds))
        return self._socket.send(data)

    def _wait_writable(self, beside: Beside) -> None:
        deadline = time.monotonic() + SEND_TIMEOUT
        wanted = dict.fromkeys(beside, select.POLLIN)
        own = self.fileno()
        wanted[own] = wanted.get(own, 0) | select.POLLOUT
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, events)
        while (left := deadline - time.monotonic()) > 0:
            for fd, events in poll.poll(left * 1000):
                if fd == own and events & ~select.POLLIN:
                    return
                if not beside[fd]():
                    poll.modify(fd, wanted[fd] & ~select.POLLIN)
        raise HungUpError(f"the peer has taken nothing for {SEND_TIMEOUT:g} s")

    def hang_up(self) -> None:
        """Let both ends see the end of the stream; from any thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone already

    def close(self) -> None:
        """Close the socket and every descriptor that nobody has taken."""
        self.hang_up()
        # Its number may be another file's at once: nobody may be about to send.
        with self._send_lock:
            for _, fds in self._fds:
                for fd in fds:
                    os.close(fd)
            self._fds.clear()
            self._close_socket()

    def _close_socket(self) -> None:
        self._socket.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return fds.tolist()
