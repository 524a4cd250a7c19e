"""Commands and replies of both sides on one stream, from any thread."""

from __future__ import annotations

import errno
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
IN_FLIGHT = 1 << 16
IDS = 1 << 16
POSTED = COMMAND | NO_REPLY
# What may wait for an owner that is busy, in bytes; a message and a descriptor cost some more.
MAX_QUEUED = 64 << 20
MESSAGE_COST, FD_COST = 128, 64 << 10
# Requests that a peer may leave unanswered.
MAX_ABANDONED = 1024
MAX_ERRNO = 4095


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

    Of several threads that wait for replies one receives for all; the owner does so as well.

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
        # How much of what the stream holds was parsed; not 0 only while there may be more.
        self._at = 0
        self._lock = threading.Lock()
        self._commands: deque[Message] = deque()
        self._cost = 0
        self._replies: dict[int, bytes | OSError | None] = {}
        self._abandoned: set[int] = set()
        self._next = 0
        self._closed = False
        self._replied = threading.Condition(self._lock)
        self._waiting = 0
        self._receiving = False
        self._twin: Messages | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(stream.fileno(), select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def fileno(self) -> int:
        """The socket."""
        return self._stream.fileno()

    def ask_over(self, twin: Messages) -> None:
        """From now on what we ask goes over a second connection, which is this object's, and is
        hung up and closed with the first; before anything is asked."""
        self._twin = twin

    def hang_up(self) -> None:
        """End the connection; from any thread."""
        self._stream.hang_up()
        if self._twin is not None:
            self._twin.hang_up()

    def close(self) -> None:
        """End the connection and free all resources, once the threads that wait have seen it."""
        if self._twin is not None:
            self._twin.close()
        self._stream.hang_up()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for message in self._commands:
                close_all(message.fds)
            self._commands.clear()
            self._replied.notify_all()
            if not self._waiting:
                self._free()

    def _free(self) -> None:
        self._stream.close()
        os.close(self._wake)

    # The owner's part.

    @property
    def waiting(self) -> bool:
        """Whether something has been received that nobody has taken."""
        return bool(self._commands or self._at) or self._stream.holds_more

    @property
    def empty(self) -> bool:
        """Whether nothing is left of what has come."""
        return not (self._stream.length or self._commands) and not self._stream.holds_more

    def receive(self) -> bool:
        """Receive once, without waiting; whether there is anything to take.

        Raises:
            HungUpError: the peer has closed the connection.
        """
        with self._lock:
            # What was not parsed yet may fill the buffer.
            return bool(self._at) or self._receive()

    def _receive(self) -> bool:
        if self._closed:
            raise HungUpError("the connection was closed")
        return self._stream.receive()

    def take_alone(self, form: struct.Struct) -> tuple[Any, ...] | None:
        """The fields of a command, header included, that came alone: it has the form's size, wants
        a reply, and brought no descriptors. None where something else has come.
        """
        stream = self._stream
        if stream.length != form.size:
            return None
        with self._lock:
            if stream.length != form.size or self._at or self._commands or stream.has_fds:
                return None
            fields = form.unpack_from(stream.buffer)
            if fields[2] != form.size or fields[3] != COMMAND:
                return None
            stream.length = 0
            return fields

    def take_posted(self, command: int, form: struct.Struct) -> list[tuple[Any, ...]]:
        """The fields, header included, of all commands of a kind that have come one after the other
        and before anything else, have the form's size, want no reply, and brought no descriptors.
        """
        stream, size = self._stream, form.size
        if stream.length < size:
            return []
        with self._lock:
            if self._at or self._commands or stream.has_fds:
                return []
            found: list[tuple[Any, ...]] = []
            for fields in form.iter_unpack(stream.view[: stream.length // size * size]):
                if fields[1] != command or fields[2] != size or fields[3] != POSTED:
                    break
                found.append(fields)
            if found:
                stream.consume(len(found) * size)
            return found

    def take(self) -> Message | None:
        """The next command that has come as a whole.

        Raises:
            FormatError: the peer does not speak the protocol; the connection must end.
        """
        with self._lock:
            if not self._commands:
                return self._parse()
            message = self._commands.popleft()
            self._cost -= _cost(message)
            return message

    def take_if(self, wanted: Callable[[Message], bool]) -> list[Message]:
        """All commands that are wanted, wherever they stand; the others stay in their order.

        For a thread that takes the owner's place while that is busy.

        Raises:
            HungUpError, FormatError: as `receive` and `take`.
        """
        with self._lock:
            while self._cost < MAX_QUEUED // 2 and (self._at or self._receive()):
                self._queue()
            found = [message for message in self._commands if wanted(message)]
            for message in found:
                self._commands.remove(message)
                self._cost -= _cost(message)
            return found

    def _queue(self) -> bool:
        """Parse all that has come, for the owner to take; whether there were commands."""
        came = False
        try:
            while (message := self._parse()) is not None:
                self._commands.append(message)
                self._cost += _cost(message)
                came = True
            if self._cost >= MAX_QUEUED:
                raise FormatError("the peer sends commands without end, and no reply")
        except FormatError:
            # The owner is to hear of it as well.
            self._stream.hang_up()
            raise
        return came

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
            if kind != REPLY:
                raise FormatError(f"message {ident} with flags {flags:#x} is of no known type")
            self._answered(ident, _refusal(error) if flags & ERROR else payload)
        stream.consume(at)
        self._at = 0
        return None

    def _answered(self, ident: int, reply: bytes | OSError) -> None:
        if ident in self._abandoned:
            self._abandoned.discard(ident)
            return
        if self._replies.get(ident, reply) is not None:
            raise FormatError(f"message {ident} replies to nothing")
        self._replies[ident] = reply
        self._replied.notify_all()
        if self._receiving:
            os.eventfd_write(self._wake, 1)

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
        if self._twin is not None:
            self._twin.post(command, payload, fds)
            return
        size = HEADER_SIZE + len(payload)
        self._stream.send(HEADER.pack(0, command, size, COMMAND | NO_REPLY, 0) + payload, fds)

    def post_all(self, command: int, payloads: Sequence[bytes]) -> None:
        """Send many commands of a kind that want no reply."""
        if self._twin is not None:
            self._twin.post_all(command, payloads)
            return
        self._stream.send(
            b"".join(
                HEADER.pack(0, command, HEADER_SIZE + len(payload), COMMAND | NO_REPLY, 0) + payload
                for payload in payloads
            )
        )

    def request(self, command: int, payload: bytes) -> bytes:
        """Send a command and wait for its reply; commands that come meanwhile wait.

        Raises:
            OSError: the peer replied with an error, or not within 5 s (ETIMEDOUT).
            HungUpError: the connection has ended.
            FormatError: the peer does not speak the protocol.
        """
        return self.request_all(command, [payload])[0]

    def request_all(self, command: int, payloads: Sequence[bytes]) -> list[bytes]:
        """Send many commands of a kind before waiting for the first reply; see `request`."""
        if self._twin is not None:
            return self._twin.request_all(command, payloads)
        found: list[bytes] = []
        idents: deque[int] = deque()
        sizes: deque[int] = deque()
        flying = sent = 0
        try:
            while len(found) < len(payloads):
                if flying <= IN_FLIGHT // 2 and sent < len(payloads):
                    start = sent
                    # What is on its way fits into the socket: a peer that does not read before we
                    # have taken its replies does not stop us.
                    while sent < len(payloads) and (
                        sent == start or flying + len(payloads[sent]) < IN_FLIGHT
                    ):
                        sizes.append(HEADER_SIZE + len(payloads[sent]))
                        flying += sizes[-1]
                        sent += 1
                    idents.extend(self._begin(command, payloads[start:sent]))
                found.append(self._await(idents.popleft()))
                flying -= sizes.popleft()
        finally:
            # One has failed: what the others bring means nothing.
            for ident in idents:
                self._end(ident)
        return found

    def _begin(self, command: int, payloads: Sequence[bytes]) -> list[int]:
        idents: list[int] = []
        with self._lock:
            if len(self._abandoned) >= MAX_ABANDONED:
                raise OSError(errno.ETIMEDOUT, "the peer has stopped answering")
            for _ in payloads:
                ident = self._next
                while ident in self._replies or ident in self._abandoned:
                    ident = (ident + 1) % IDS
                self._next = (ident + 1) % IDS
                self._replies[ident] = None
                idents.append(ident)
        try:
            self._stream.send(
                b"".join(
                    HEADER.pack(ident, command, HEADER_SIZE + len(payload), COMMAND, 0) + payload
                    for ident, payload in zip(idents, payloads, strict=True)
                )
            )
        except BaseException:
            for ident in idents:
                self._end(ident)
            raise
        return idents

    def _end(self, ident: int) -> None:
        """Nobody waits for this reply any more; it may come yet."""
        with self._lock:
            self._forget(ident)

    def _forget(self, ident: int) -> None:
        if self._replies.pop(ident) is None:
            self._abandoned.add(ident)

    def _await(self, ident: int) -> bytes:
        deadline = time.monotonic() + REPLY_TIMEOUT
        with self._lock:
            self._waiting += 1
            try:
                while (reply := self._replies[ident]) is None:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise OSError(errno.ETIMEDOUT, f"no reply for {REPLY_TIMEOUT:g} s")
                    if self._receiving:
                        self._replied.wait(left)
                    elif not (self._at or self._receive()):
                        self._wait_for_data(left)
                    elif self._queue():
                        self._queued()
            finally:
                self._forget(ident)
                self._waiting -= 1
                if self._closed and not self._waiting:
                    self._free()
                # Another one is to receive now.
                self._replied.notify()
        if isinstance(reply, OSError):
            raise reply
        return reply

    def _wait_for_data(self, seconds: float) -> None:
        """Wait without the lock until something may be received, or another thread has done so."""
        self._receiving = True
        self._lock.release()
        try:
            self._poll.poll(seconds * 1000)
        finally:
            self._lock.acquire()
            self._receiving = False
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass  # there is data


def _cost(message: Message) -> int:
    return len(message.payload) + MESSAGE_COST + FD_COST * len(message.fds)


def _refusal(error: int) -> OSError:
    error = error if 0 < error <= MAX_ERRNO else errno.EIO
    return OSError(error, os.strerror(error))


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)
