"""One socket of the connection to a server: messages that come, and answers to its commands."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from softcard.errors import DmaError
from softcard.wire import vfio_user as wire
from softcard.wire.stream import Beside, MessageStream
from softcard.wire.vfio_user import FormatError

MAX_MESSAGE = wire.HEADER_SIZE + wire.DMA_ACCESS.size + wire.DEFAULT_TRANSFER
# What a server that does not read while it sends may be ahead of us.
MAX_BACKLOG = 1 << 26
ANSWERS_AT_ONCE = 1 << 18

Header = tuple[int, int, int, int, int]


class Channel:
    """Splits a stream into messages, and answers those that are commands.

    Args:
        stream: the socket.
        answer: gives the reply's payload to a command with this payload; raises `DmaError` or
            `OSError` for an error.

    Attributes:
        beside: what to look after while the server takes nothing.
    """

    def __init__(self, stream: MessageStream, answer: Callable[[int, bytes], bytes]) -> None:
        self.stream = stream
        # Where the next message is in the stream's buffer.
        self.at = 0
        self._answer = answer
        self._answers = bytearray()
        self.beside: Beside = {stream.fileno(): self.keep}

    def keep(self) -> bool:
        """Receive for later; whether there is room for more."""
        stream = self.stream
        stream.make_room(stream.length + 1)
        stream.receive()
        return stream.length < MAX_BACKLOG

    def send(self, data: bytes | bytearray, fds: Sequence[int] = ()) -> None:
        """Send a message that is packed already.

        Raises:
            HungUpError: the server has gone, or has taken nothing for 5 s.
        """
        self.stream.send(data, fds, beside=self.beside)

    @property
    def waiting(self) -> bool:
        """Whether a message has been received and not been dealt with."""
        stream = self.stream
        left = stream.length - self.at
        if left < wire.HEADER_SIZE:
            return stream.holds_more
        size: int = wire.HEADER.unpack_from(stream.buffer, self.at)[2]
        return left >= size or stream.holds_more

    def head(self) -> Header | None:
        """The header of the next message, if that is there as a whole: `take` or `serve` it.

        Raises:
            FormatError: there can be no such message.
        """
        stream = self.stream
        size = wire.HEADER_SIZE
        if stream.length - self.at >= size:
            head = wire.HEADER.unpack_from(stream.buffer, self.at)
            size = head[2]
            if not wire.HEADER_SIZE <= size <= MAX_MESSAGE:
                raise FormatError(f"a message with command {head[1]} is said to have {size} bytes")
            if stream.length - self.at >= size:
                return head
        self.compact()
        stream.make_room(size)
        return None

    def compact(self) -> None:
        """Move what was not dealt with to the front of the buffer."""
        self.stream.consume(self.at)
        self.at = 0

    def take(self, size: int) -> tuple[bytes, list[int]]:
        """Payload and descriptors of the next message, which are the caller's now."""
        stream, at = self.stream, self.at
        self.at = end = at + size
        payload = bytes(stream.view[at + wire.HEADER_SIZE : end])
        return payload, stream.take_fds(at, end) if stream.has_fds else []

    def serve(self, head: Header) -> None:
        """Answer the next message, which is a command; `flush` sends what waits for company."""
        ident, command, size, flags, _ = head
        payload, fds = self.take(size)
        close_all(fds)
        error, answer = 0, b""
        try:
            answer = self._answer(command, payload)
        except DmaError:
            error = errno.EFAULT
        except OSError as refused:
            error = refused.errno or errno.EIO
        if flags & wire.NO_REPLY:
            return
        flags = wire.REPLY | (wire.ERROR if error else 0)
        size = wire.HEADER_SIZE + len(answer)
        self._answers += wire.HEADER.pack(ident, command, size, flags, error)
        self._answers += answer
        if len(self._answers) > ANSWERS_AT_ONCE:
            self.flush()

    def serve_all(self, at_most: int) -> bool:
        """Receive once, without waiting, and answer what is there; whether there was anything.

        Raises:
            HungUpError: the server has gone.
            FormatError: it has sent something else than commands.
        """
        self.compact()
        found = self.stream.receive()
        for _ in range(at_most):
            head = self.head()
            if head is None:
                break
            found = True
            ident, _, _, flags, _ = head
            if flags & wire.TYPE_MASK != wire.COMMAND:
                raise FormatError(f"message {ident} with flags {flags:#x} replies to nothing")
            self.serve(head)
        self.flush()
        return found

    def flush(self) -> None:
        """Send the answers that wait for company."""
        if self._answers:
            answers, self._answers = self._answers, bytearray()
            self.send(answers)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)
