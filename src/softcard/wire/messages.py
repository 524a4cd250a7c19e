"""Commands and replies of both sides on one stream, from any thread."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from softcard.wire.stream import HungUpError, MessageStream
from softcard.wire.vfio_user import (
    COMMAND,
    ERROR,
    HEADER,
    HEADER_SIZE,
    NO_REPLY,
    REPLY,
    TYPE_MASK,
    FormatError,
)

REPLY_TIMEOUT = 5.0
SHARED_WAIT = 0.005
AT_ONCE = 64
IDS = 1 << 16


class Message(NamedTuple):
    """A command of the peer's; its descriptors are the receiver's."""

    ident: int
    command: int
    flags: int
    payload: bytes
    fds: list[int]


class Messages:
    """Splits a stream into commands, which the owner takes one by one, and replies, which go to
    those who wait for them.

    Args:
        stream: the connection.
        max_size: bytes of the longest message that the peer may send.
        queued: called when a thread that waits for a reply has received commands for the owner.
    """

    def __init__(
        self, stream: MessageStream, max_size: int, queued: Callable[[], object] = lambda: None
    ) -> None:
        self._stream = stream
        self._max_size = max_size
        self._queued = queued
        self._at = 0
        self._lock = threading.Lock()
        self._commands: deque[Message] = deque()
        self._replies: dict[int, bytes | OSError | None] = {}
        self._next = 0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """The socket."""
        return self._stream.fileno()

    def hang_up(self) -> None:
        """End the connection; from any thread."""
        self._stream.hang_up()

    def close(self) -> None:
        """Free all resources."""
        with self._lock:
            for message in self._commands:
                close_all(message.fds)
            self._commands.clear()
            self._stream.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    # The owner's part.

    @property
    def waiting(self) -> bool:
        """Whether commands have come that nobody has taken."""
        return bool(self._commands) or self._stream.holds_more

    def receive(self) -> bool:
        """Receive once, without waiting; whether anything came.

        Raises:
            HungUpError: the peer has closed the connection.
        """
        with self._lock:
            return self._stream.receive()

    def take(self) -> Message | None:
        """The next command that has come as a whole.

        Raises:
            FormatError: the peer does not speak the protocol; the connection must end.
        """
        with self._lock:
            message = self._commands.popleft() if self._commands else self._parse()
        if self._replies:
            self._wake_waiting()
        return message

    def _parse(self) -> Message | None:
        stream, at = self._stream, self._at
        while stream.length - at >= HEADER_SIZE:
            ident, command, size, flags, error = HEADER.unpack_from(stream.buffer, at)
            if not HEADER_SIZE <= size <= self._max_size:
                raise FormatError(f"command {command} is said to have {size} bytes")
            end = at + size
            if end > stream.length:
                stream.consume(at)
                self._at = 0
                stream.make_room(size)
                return None
            payload = bytes(stream.view[at + HEADER_SIZE : end])
            fds = stream.take_fds(at, end) if stream.has_fds else []
            self._at = at = end
            kind = flags & TYPE_MASK
            if kind == COMMAND:
                return Message(ident, command, flags, payload, fds)
            close_all(fds)
            if kind != REPLY or ident not in self._replies:
                raise FormatError(f"message {ident} with flags {flags:#x} replies to nothing")
            self._replies[ident] = OSError(error, os.strerror(error)) if flags & ERROR else payload
        stream.consume(at)
        self._at = 0
        return None

    def reply(self, message: Message, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Answer a command, if its sender wants that."""
        if not message.flags & NO_REPLY:
            size = HEADER_SIZE + len(payload)
            header = HEADER.pack(message.ident, message.command, size, REPLY, 0)
            self._stream.send(header + payload, fds)

    def reply_error(self, message: Message, error: int) -> None:
        """Answer a command with an errno."""
        if not message.flags & NO_REPLY:
            header = (message.ident, message.command, HEADER_SIZE, REPLY | ERROR, error)
            self._stream.send(HEADER.pack(*header))

    def send(self, data: bytes) -> None:
        """Send a message that is packed already."""
        self._stream.send(data)

    # Asking the peer, from any thread.

    def post(self, command: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send a command that wants no reply."""
        size = HEADER_SIZE + len(payload)
        self._stream.send(HEADER.pack(0, command, size, COMMAND | NO_REPLY, 0) + payload, fds)

    def post_all(self, command: int, payloads: Sequence[bytes]) -> None:
        """Send many commands of a kind that want no reply."""
        self._stream.send(
            b"".join(
                HEADER.pack(0, command, HEADER_SIZE + len(payload), COMMAND | NO_REPLY, 0) + payload
                for payload in payloads
            )
        )

    def request(self, command: int, payload: bytes, fds: Sequence[int] = ()) -> bytes:
        """Send a command and wait for its reply; commands that come meanwhile wait.

        Raises:
            OSError: the peer replied with an error, or not within 5 s (ETIMEDOUT).
            HungUpError: the connection has ended.
            FormatError: the peer does not speak the protocol.
        """
        ident = self._begin(command, payload, fds)
        try:
            return self._await(ident)
        finally:
            with self._lock:
                del self._replies[ident]

    def request_all(self, command: int, payloads: Sequence[bytes]) -> list[bytes]:
        """Send many commands of a kind before waiting for the first reply; see `request`."""
        found: list[bytes] = []
        idents: deque[int] = deque()
        try:
            for payload in payloads:
                if len(idents) == AT_ONCE:
                    found.append(self._await(idents[0]))
                    self._forget(idents.popleft())
                idents.append(self._begin(command, payload, ()))
            while idents:
                found.append(self._await(idents[0]))
                self._forget(idents.popleft())
        finally:
            # One has failed: the replies to the others are still to come, and mean nothing.
            for ident in list(idents):
                try:
                    self._await(ident)
                except (OSError, HungUpError, FormatError):
                    pass
                self._forget(ident)
        return found

    def _forget(self, ident: int) -> None:
        with self._lock:
            self._replies.pop(ident, None)

    def _begin(self, command: int, payload: bytes, fds: Sequence[int]) -> int:
        with self._lock:
            ident = self._next
            while ident in self._replies:
                ident = (ident + 1) % IDS
            self._next = (ident + 1) % IDS
            self._replies[ident] = None
        size = HEADER_SIZE + len(payload)
        try:
            self._stream.send(HEADER.pack(ident, command, size, COMMAND, 0) + payload, fds)
        except BaseException:
            self._forget(ident)
            raise
        return ident

    def _await(self, ident: int) -> bytes:
        deadline = time.monotonic() + REPLY_TIMEOUT
        while True:
            with self._lock:
                before = len(self._commands)
                while (message := self._parse()) is not None:
                    self._commands.append(message)
                came = len(self._commands) > before
                reply = self._replies[ident]
                received = reply is None and self._stream.receive()
                alone = len(self._replies) == 1
            if came:
                self._queued()
            if isinstance(reply, OSError):
                raise reply
            if reply is not None:
                return reply
            if not received:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise OSError(errno.ETIMEDOUT, f"no reply for {REPLY_TIMEOUT:g} s")
                # Of several that wait, the wrong one may be woken.
                self._wait(left if alone else min(left, SHARED_WAIT))

    def _wait(self, timeout: float) -> None:
        """Wait for data, or for another thread to have received the reply."""
        poll = select.poll()
        poll.register(self._stream.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        if any(fd == self._wake_read for fd, _ in poll.poll(timeout * 1000)):
            try:
                os.read(self._wake_read, 64)
            except BlockingIOError:
                pass  # another thread was quicker

    def _wake_waiting(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # it is full of wake-ups


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)
