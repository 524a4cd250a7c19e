"""Asks a server, and answers what it asks meanwhile."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Protocol

from softcard.bridge.vfio_user.channel import Channel, close_all
from softcard.wire import vfio_user as wire
from softcard.wire.stream import HungUpError, MessageStream
from softcard.wire.vfio_user import Command, FormatError

TIMEOUT = 5.0
MAX_VERSION = 4096
SERVED_AT_ONCE = 256
IDS = 1 << 16
# A REGION_READ or its reply, header included.
ACCESS = struct.Struct("<HHIIIQII")
ACCESS_SIZE, READ = ACCESS.size, int(Command.REGION_READ)
COMMAND, REPLY = wire.COMMAND, wire.REPLY


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

    def signalled(self, fd: int) -> None:
        """A descriptor that was added to `Client.events` is readable."""

    def lost(self, why: str) -> None:
        """The connection has just ended; called once."""


class Client:
    """One connection, used by one thread at a time.

    Each request is answered within 5 s, or the connection ends. A server may ask for DMA while a
    request waits, and is answered then: on the same socket, or on a second one that it passes to
    us for that.

    Args:
        stream: the connection.
        host: whom the server's own requests go to.

    Attributes:
        events: readable when there is something for `serve`; the interrupts' descriptors are added
            to it.
        ident: the id of the last request.
        max_fds: descriptors that the server takes in one message; 0 where none can pass.
        max_transfer: bytes that it takes in one access.
        by_messages: interrupts come as messages.
    """

    def __init__(self, stream: MessageStream, host: Host) -> None:
        self._main = Channel(stream, self._answer)
        self._twin: Channel | None = None
        self._host = host
        self._fd = stream.fileno()
        self.events = select.epoll()
        self.events.register(self._fd, select.EPOLLIN)
        # The sockets alone.
        self._sockets = select.poll()
        self._sockets.register(self._fd, select.POLLIN)
        self.ident = 0
        self._why: str | None = None
        self._passes_fds = stream.passes_fds
        self.max_fds = 0
        self.max_transfer = wire.DEFAULT_TRANSFER
        self.by_messages = False

    @property
    def alive(self) -> bool:
        """Whether the connection can be used."""
        return self._why is None

    @property
    def has_twin(self) -> bool:
        """Whether the server's commands come on a second socket."""
        return self._twin is not None

    def close(self) -> None:
        """End the connection, without a word to the host."""
        self._why = self._why or "the connection was closed"
        for channel in self._channels():
            channel.stream.close()
        self.events.close()

    def _channels(self) -> list[Channel]:
        return [self._main] if self._twin is None else [self._main, self._twin]

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
        if self._passes_fds:
            ours[wire.TWIN_SOCKET] = {"supported": True}
        else:
            ours[wire.INTERRUPTS] = True
        request = wire.pack_version(wire.MAJOR, wire.MINOR, ours)
        try:
            reply, fds = self.ask_for_files(
                Command.VERSION, request, least=wire.VERSION.size, most=MAX_VERSION
            )
        except RefusedError as error:
            raise self._fail(f"it does not want us: {error}") from None
        try:
            major, minor, theirs = wire.unpack_version(reply)
            transfer = wire.number_capability(theirs, "max_data_xfer_size", wire.DEFAULT_TRANSFER)
            max_fds = wire.number_capability(theirs, "max_msg_fds", wire.DEFAULT_FDS)
            if major != wire.MAJOR or minor > wire.MINOR:
                raise FormatError(
                    f"it speaks version {major}.{minor}, and we speak {wire.MAJOR}.{wire.MINOR}"
                )
            twin = wire.twin_index(theirs, len(fds)) if self._passes_fds else None
            if twin is not None:
                self._add_twin(fds.pop(twin))
        except FormatError as error:
            raise self._fail(str(error)) from None
        finally:
            close_all(fds)
        self.max_transfer = min(transfer, wire.DEFAULT_TRANSFER)
        self.max_fds = min(max_fds, wire.MAX_FDS) if self._passes_fds else 0
        self.by_messages = not self._passes_fds and theirs.get(wire.INTERRUPTS) is True

    def _add_twin(self, fd: int) -> None:
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise FormatError(f"its second socket is none: {error.strerror}") from None
        twin = self._twin = Channel(MessageStream(sock), self._answer)
        try:
            sock.getpeername()
        except OSError as error:
            raise FormatError(f"its second socket cannot be used: {error.strerror}") from None
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise FormatError("its second socket is no UNIX stream socket")
        self.events.register(fd, select.EPOLLIN)
        self._sockets.register(fd, select.POLLIN)
        # A server may wait for an answer before it takes more of what we ask.
        self._main.beside = {**self._main.beside, fd: self._serve_twin}
        twin.beside = {**twin.beside, self._fd: self._main.keep}

    def _serve_twin(self) -> bool:
        if self._twin is not None:
            self._twin.serve_all(SERVED_AT_ONCE)
        return True

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
        close_all(theirs)
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
        self.ident = ident = (self.ident + 1) % IDS
        size = wire.HEADER_SIZE + len(payload)
        deadline = time.monotonic() + TIMEOUT
        try:
            self._send(wire.HEADER.pack(ident, command, size, wire.COMMAND, 0) + payload, fds)
            most = least if most is None else most
            return self._await(ident, command, least, most, deadline)
        except (HungUpError, FormatError) as error:
            raise self._fail(str(error)) from None

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read from a region, at most `max_transfer` bytes. What the server signalled before its
        reply has reached the host when this returns, as a completion pushes messages.

        Raises:
            RefusedError, LostError: see `ask`.
        """
        if self._why is not None:
            raise LostError(self._why)
        self.ident = ident = (self.ident + 1) % IDS
        main = self._main
        stream = main.stream
        deadline = time.monotonic() + TIMEOUT
        try:
            stream.send(
                ACCESS.pack(ident, READ, ACCESS_SIZE, COMMAND, 0, offset, region, size),
                beside=main.beside,
            )
            if main.at:
                main.compact()
            if not (stream.length or stream.holds_more):
                self._listen(deadline)
                stream.receive()
                # Nearly always the reply comes alone and whole.
                end = ACCESS_SIZE + size
                if (
                    stream.length == end
                    and stream.buffer.startswith(
                        ACCESS.pack(ident, READ, end, REPLY, 0, offset, region, size)
                    )
                    and not stream.has_fds
                ):
                    stream.length = 0
                    return bytes(stream.view[ACCESS_SIZE:end])
            least = wire.ACCESS.size + size
            payload, fds = self._await(ident, Command.REGION_READ, least, least, deadline)
            close_all(fds)
            self._take_events()
            return payload[wire.ACCESS.size :]
        except (HungUpError, FormatError) as error:
            raise self._fail(str(error)) from None

    def post(self, command: Command, payload: bytes) -> None:
        """Send a request that wants no reply; it waits while the server takes nothing.

        Raises:
            LostError: the connection has ended, or the server has taken nothing for 5 s.
        """
        size = wire.HEADER_SIZE + len(payload)
        flags = wire.COMMAND | wire.NO_REPLY
        try:
            self._send(wire.HEADER.pack(0, command, size, flags, 0) + payload)
        except (HungUpError, FormatError) as error:
            raise self._fail(str(error)) from None

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self._why is not None:
            raise LostError(self._why)
        self._main.send(data, fds)

    def _await(
        self, ident: int, command: Command, least: int, most: int, deadline: float
    ) -> tuple[bytes, list[int]]:
        main = self._main
        while True:
            while (head := main.head()) is not None:
                got, about, size, flags, error = head
                if flags & wire.TYPE_MASK == wire.COMMAND:
                    main.serve(head)
                    if time.monotonic() > deadline:
                        break
                    continue
                main.flush()
                payload, fds = main.take(size)
                try:
                    if flags & wire.TYPE_MASK != wire.REPLY or got != ident or about != command:
                        raise FormatError(
                            f"message {got} with command {about} and flags {flags:#x} is no reply "
                            f"to {command.name}, message {ident}"
                        )
                    if flags & wire.ERROR:
                        raise RefusedError(f"{command.name}: {os.strerror(error)}")
                    if not least <= len(payload) <= most:
                        raise FormatError(
                            f"its reply to {command.name} has {len(payload)} bytes, not "
                            + (str(least) if least == most else f"{least} to {most}")
                        )
                except BaseException:
                    close_all(fds)
                    raise
                return payload, fds
            main.flush()
            left = deadline - time.monotonic()
            if left <= 0:
                raise HungUpError(f"it has not answered {command.name} for {TIMEOUT:g} s")
            self._receive(left)

    def _receive(self, timeout: float) -> None:
        """Wait for more from the server, and for nothing else; what is on the second socket is
        answered."""
        stream = self._main.stream
        if self._twin is None:
            if stream.wait(timeout):
                stream.receive()
            return
        for fd, _ in self._sockets.poll(timeout * 1000):
            if fd == self._fd:
                stream.receive()
            else:
                self._serve_twin()

    def _listen(self, deadline: float) -> None:
        """Wait for the first socket until `deadline`; what comes elsewhere before that, or at the
        same time, is dealt with."""
        fd = self._fd
        came = False
        while not came and (left := deadline - time.monotonic()) > 0:
            for ready, _ in self.events.poll(left):
                if ready == fd:
                    came = True
                else:
                    self._take_event(ready)

    def _take_events(self) -> bool:
        """Deal with what is signalled, but for the first socket; whether there was anything at
        all."""
        events = self.events.poll(0)
        for fd, _ in events:
            if fd != self._fd:
                self._take_event(fd)
        return bool(events)

    def _take_event(self, fd: int) -> None:
        if self._twin is not None and fd == self._twin.stream.fileno():
            self._serve_twin()
        else:
            self._host.signalled(fd)

    def _fail(self, why: str) -> LostError:
        """The server cannot be talked to any more; returns what to raise."""
        if self._why is None:
            self._why = why
            for channel in self._channels():
                channel.stream.hang_up()
            self._host.lost(why)
        return LostError(self._why)

    # What the server does by itself.

    def serve(self) -> bool:
        """Take interrupts, and answer what has come, without waiting; whether there was anything.

        Raises:
            LostError: the connection has ended, now or before.
        """
        if self._why is not None:
            raise LostError(self._why)
        try:
            if not (self._take_events() or self.waiting):
                return False
            for channel in self._channels():
                channel.serve_all(SERVED_AT_ONCE)
        except (HungUpError, FormatError) as error:
            raise self._fail(str(error)) from None
        return True

    @property
    def waiting(self) -> bool:
        """Whether a message has been received and not been dealt with."""
        return any(channel.waiting for channel in self._channels())

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
