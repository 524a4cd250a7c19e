"""Asks a server, and answers what it asks meanwhile."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Sequence
from typing import Protocol

from softcard.errors import DmaError
from softcard.wire import vfio_user as wire
from softcard.wire.stream import HungUpError, MessageStream
from softcard.wire.vfio_user import Command, FormatError

TIMEOUT = 5.0
MAX_VERSION = 4096
# What a server that does not read while it sends may be ahead of us.
MAX_BACKLOG = 1 << 26
MAX_MESSAGE = wire.HEADER_SIZE + wire.DMA_ACCESS.size + wire.DEFAULT_TRANSFER
SERVED_AT_ONCE = 256
ANSWERS_AT_ONCE = 1 << 18
IDS = 1 << 16
# A REGION_READ or its reply, header included.
ACCESS = struct.Struct("<HHIIIQII")


class LostError(Exception):
    """The connection cannot be used any more; the message says why."""


class RefusedError(Exception):
    """The server has answered one request with an error."""


class Host(Protocol):
    """What a server asks of its client."""

    def dma_read(self, address: int, length: int) -> bytes:
        """Memory read; raises `DmaError`."""

    def dma_write(self, address: int, data: bytes) -> None:
        """Memory write; raises `DmaError`."""

    def interrupt(self, kind: int, vector: int, asserted: bool) -> None:
        """An interrupt that came as a message."""

    def lost(self, why: str) -> None:
        """The connection has just ended; called once."""


class Client:
    """One connection, used by one thread at a time.

    Each request is answered within 5 s, or the connection ends. A server may ask for DMA while a
    request waits, and is answered then.

    Args:
        stream: the connection.
        host: whom the server's own requests go to.

    Attributes:
        max_fds: descriptors that the server takes in one message; 0 where none can pass.
        max_transfer: bytes that it takes in one access.
        by_messages: interrupts come as messages.
    """

    def __init__(self, stream: MessageStream, host: Host) -> None:
        self._stream = stream
        self._host = host
        self._ident = 0
        # Where the next message is in the stream's buffer.
        self._at = 0
        self._answers = bytearray()
        self._why: str | None = None
        self._passes_fds = stream.passes_fds
        self.max_fds = 0
        self.max_transfer = wire.DEFAULT_TRANSFER
        self.by_messages = False

    def fileno(self) -> int:
        """The socket."""
        return self._stream.fileno()

    @property
    def alive(self) -> bool:
        """Whether the connection can be used."""
        return self._why is None

    def close(self) -> None:
        """End the connection, without a word to the host."""
        self._why = self._why or "the connection was closed"
        self._stream.hang_up()
        self._stream.close()

    def negotiate(self) -> None:
        """Agree on a version and capabilities.

        Raises:
            LostError: the server does not speak this version.
        """
        ours: dict[str, object] = {
            "max_msg_fds": wire.MAX_FDS,
            "max_data_xfer_size": wire.DEFAULT_TRANSFER,
            "pgsizes": wire.DEFAULT_PAGE_SIZES,
        }
        if not self._passes_fds:
            ours[wire.INTERRUPTS] = True
        request = wire.pack_version(wire.MAJOR, wire.MINOR, ours)
        try:
            reply = self.ask(Command.VERSION, request, least=wire.VERSION.size, most=MAX_VERSION)
            major, minor, theirs = wire.unpack_version(reply)
            transfer = wire.number_capability(theirs, "max_data_xfer_size", wire.DEFAULT_TRANSFER)
            max_fds = wire.number_capability(theirs, "max_msg_fds", wire.DEFAULT_FDS)
        except FormatError as error:
            raise self._fail(str(error)) from None
        except RefusedError as error:
            raise self._fail(f"it does not want us: {error}") from None
        if major != wire.MAJOR or minor > wire.MINOR:
            raise self._fail(
                f"it speaks version {major}.{minor}, and we speak {wire.MAJOR}.{wire.MINOR}"
            )
        self.max_transfer = min(transfer, wire.DEFAULT_TRANSFER)
        self.max_fds = min(max_fds, wire.MAX_FDS) if self._passes_fds else 0
        self.by_messages = not self._passes_fds and theirs.get(wire.INTERRUPTS) is True

    # Requests.

    def ask(
        self,
        command: Command,
        payload: bytes = b"",
        *,
        least: int = 0,
        most: int | None = None,
        fds: Sequence[int] = (),
    ) -> bytes:
        """Send a request and wait for its reply.

        Args:
            command: what is asked.
            payload: what follows the header.
            least: bytes that the reply's payload has at least.
            most: bytes that it has at most; as many as `least` when left out.
            fds: descriptors that go with the request.

        Raises:
            RefusedError: the server answers with an error.
            LostError: the connection has ended, now or before.
        """
        reply, theirs = self.ask_for_files(command, payload, least=least, most=most, fds=fds)
        _close_all(theirs)
        return reply

    def ask_for_files(
        self,
        command: Command,
        payload: bytes,
        *,
        least: int,
        most: int | None,
        fds: Sequence[int] = (),
    ) -> tuple[bytes, list[int]]:
        """The same, with the descriptors of the reply, which are the caller's."""
        self._ident = ident = (self._ident + 1) % IDS
        size = wire.HEADER_SIZE + len(payload)
        self._send(wire.HEADER.pack(ident, command, size, wire.COMMAND, 0) + payload, fds)
        return self._await(ident, command, least, least if most is None else most)

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read from a region, at most `max_transfer` bytes.

        Raises:
            RefusedError, LostError: see `ask`.
        """
        self._ident = ident = (self._ident + 1) % IDS
        request = (ident, Command.REGION_READ, ACCESS.size, wire.COMMAND, 0, offset, region, size)
        self._send(ACCESS.pack(*request))
        stream = self._stream
        if stream.length == self._at:
            self._compact()
            self._receive(TIMEOUT)
            # Nearly always the reply comes alone and whole.
            end = ACCESS.size + size
            reply = (ident, Command.REGION_READ, end, wire.REPLY, 0, offset, region, size)
            if (
                stream.length == end
                and not stream.has_fds
                and stream.buffer.startswith(ACCESS.pack(*reply))
            ):
                data = bytes(stream.view[ACCESS.size : end])
                stream.consume(end)
                return data
        least = wire.ACCESS.size + size
        return self._await(ident, Command.REGION_READ, least, least)[0][wire.ACCESS.size :]

    def post(self, command: Command, payload: bytes) -> None:
        """Send a request that wants no reply; it waits while the server takes nothing.

        Raises:
            LostError: the connection has ended, or the server has taken nothing for 5 s.
        """
        size = wire.HEADER_SIZE + len(payload)
        flags = wire.COMMAND | wire.NO_REPLY
        self._send(wire.HEADER.pack(0, command, size, flags, 0) + payload)

    def _send(self, data: bytes | bytearray, fds: Sequence[int] = ()) -> None:
        if self._why is not None:
            raise LostError(self._why)
        try:
            self._stream.send(data, fds, receive_up_to=MAX_BACKLOG)
        except HungUpError as error:
            raise self._fail(str(error)) from None

    def _await(
        self, ident: int, command: Command, least: int, most: int
    ) -> tuple[bytes, list[int]]:
        deadline = time.monotonic() + TIMEOUT
        while True:
            while (size := self._next_size()) is not None:
                got, about, _, flags, error = wire.HEADER.unpack_from(self._stream.buffer, self._at)
                if flags & wire.TYPE_MASK == wire.COMMAND:
                    self._serve(got, about, size, flags)
                    if time.monotonic() > deadline:
                        break
                    continue
                self._flush()
                self._flush()
                payload, fds = self._take(size)
                if flags & wire.TYPE_MASK != wire.REPLY or got != ident or about != command:
                    _close_all(fds)
                    raise self._fail(
                        f"message {got} with command {about} and flags {flags:#x} is no reply to "
                        f"{command.name}, message {ident}"
                    )
                if flags & wire.ERROR:
                    _close_all(fds)
                    raise RefusedError(f"{command.name}: {os.strerror(error)}")
                if not least <= len(payload) <= most:
                    _close_all(fds)
                    raise self._fail(
                        f"its reply to {command.name} has {len(payload)} bytes, not "
                        + (str(least) if least == most else f"{least} to {most}")
                    )
                return payload, fds
            self._flush()
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._fail(f"it has not answered {command.name} for {TIMEOUT:g} s")
            self._receive(left)

    def _receive(self, timeout: float) -> None:
        try:
            if self._stream.wait(timeout):
                self._stream.receive()
        except HungUpError as error:
            raise self._fail(str(error)) from None

    def _next_size(self) -> int | None:
        """Bytes of the message at the start of the buffer, if it is there as a whole."""
        stream = self._stream
        size = wire.HEADER_SIZE
        if stream.length - self._at >= size:
            _, command, size, _, _ = wire.HEADER.unpack_from(self._stream.buffer, self._at)
            if not wire.HEADER_SIZE <= size <= MAX_MESSAGE:
                raise self._fail(f"a message with command {command} is said to have {size} bytes")
            if stream.length - self._at >= size:
                return int(size)
        self._compact()
        stream.make_room(size)
        return None

    def _compact(self) -> None:
        """Move what was not dealt with to the front of the buffer."""
        self._stream.consume(self._at)
        self._at = 0

    def _take(self, size: int) -> tuple[bytes, list[int]]:
        stream, at = self._stream, self._at
        self._at = end = at + size
        payload = bytes(stream.view[at + wire.HEADER_SIZE : end])
        return payload, stream.take_fds(at, end) if stream.has_fds else []

    def _fail(self, why: str) -> LostError:
        """The server cannot be talked to any more; returns what to raise."""
        if self._why is None:
            self._why = why
            self._stream.hang_up()
            self._host.lost(why)
        return LostError(self._why)

    # What the server asks.

    def serve(self) -> bool:
        """Answer what has come, without waiting; whether there was anything.

        Raises:
            LostError: the connection has ended, now or before.
        """
        if self._why is not None:
            raise LostError(self._why)
        self._compact()
        try:
            received = self._stream.receive()
        except HungUpError as error:
            raise self._fail(str(error)) from None
        for _ in range(SERVED_AT_ONCE):
            size = self._next_size()
            if size is None:
                break
            received = True
            ident, command, _, flags, _ = wire.HEADER.unpack_from(self._stream.buffer, self._at)
            if flags & wire.TYPE_MASK != wire.COMMAND:
                raise self._fail(f"message {ident} with flags {flags:#x} replies to nothing")
            self._serve(ident, command, size, flags)
        self._flush()
        return received

    @property
    def waiting(self) -> bool:
        """Whether a message has been received and not been dealt with."""
        stream = self._stream
        left = stream.length - self._at
        if left < wire.HEADER_SIZE:
            return stream.holds_more
        size: int = wire.HEADER.unpack_from(stream.buffer, self._at)[2]
        return left >= size or stream.holds_more

    def _serve(self, ident: int, command: int, size: int, flags: int) -> None:
        payload, fds = self._take(size)
        _close_all(fds)
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
            self._flush()

    def _flush(self) -> None:
        """Send the answers that wait for company."""
        if self._answers:
            answers, self._answers = self._answers, bytearray()
            self._send(answers)

    def _answer(self, command: int, payload: bytes) -> bytes:
        if command == Command.DMA_READ and len(payload) == wire.DMA_ACCESS.size:
            address, count = wire.DMA_ACCESS.unpack(payload)
            if count > wire.DEFAULT_TRANSFER:
                raise OSError(errno.EINVAL, f"DMA of {count} bytes")
            return payload + self._host.dma_read(address, count)
        if command == Command.DMA_WRITE and len(payload) >= wire.DMA_ACCESS.size:
            address, count = wire.DMA_ACCESS.unpack_from(payload)
            if count != len(payload) - wire.DMA_ACCESS.size:
                raise OSError(errno.EINVAL, f"DMA of {count} bytes")
            self._host.dma_write(address, payload[wire.DMA_ACCESS.size :])
            return payload[: wire.DMA_ACCESS.size]
        if command == Command.INTERRUPT and self.by_messages:
            if len(payload) != wire.INTERRUPT.size:
                raise OSError(errno.EINVAL, f"an interrupt of {len(payload)} bytes")
            kind, vector, asserted = wire.INTERRUPT.unpack(payload)
            self._host.interrupt(kind, vector, bool(asserted))
            return b""
        raise OSError(errno.ENOTSUP, f"command {command}")


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
