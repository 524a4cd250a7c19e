"""One function's end of the bus: the upstream half of the link."""

from __future__ import annotations

import threading

from softcard.bus.vfio_user.dirty import DirtyLog
from softcard.bus.vfio_user.interrupts import Interrupts
from softcard.bus.vfio_user.memory import ClientMemory
from softcard.errors import DmaError
from softcard.model.atomic import apply_atomic
from softcard.model.link import AtomicOp, LinkFeatures
from softcard.wire import vfio_user as wire
from softcard.wire.messages import Messages
from softcard.wire.stream import HungUpError
from softcard.wire.vfio_user import Command, FormatError

FEATURES = LinkFeatures(bus="vfio-user", bus_owns_msix=True, shared_ranges=True)
FEATURES_BY_MESSAGES = LinkFeatures(
    bus="vfio-user", bus_owns_msix=True, shared_ranges=True, shared_memory=False
)


class Port:
    """What a function sees of whatever client is connected; without one, nothing is reachable.

    Args:
        logs_writes: the client may ask which of its memory was written.

    Attributes:
        memory: the client's memory.
        log: what of it the function has written; None where nobody may ask.
    """

    def __init__(self, *, logs_writes: bool) -> None:
        self.memory = ClientMemory()
        self.log = DirtyLog() if logs_writes else None
        self._messages: Messages | None = None
        self._interrupts: Interrupts | None = None
        self._transfer = wire.DEFAULT_TRANSFER
        self._posted = False
        self._asserted = False
        self._lock = threading.Lock()

    @property
    def features(self) -> LinkFeatures:
        """See `Upstream.features`."""
        return FEATURES if self.memory.shared else FEATURES_BY_MESSAGES

    def attach(
        self, messages: Messages, interrupts: Interrupts, transfer: int, *, posted: bool
    ) -> None:
        """A client is there.

        Args:
            messages: what DMA that is not shared goes by.
            interrupts: the function's.
            transfer: bytes that the client takes in one message.
            posted: it wants no reply to DMA writes.
        """
        self._transfer, self._posted = transfer, posted
        with self._lock:
            self._messages, self._interrupts = messages, interrupts
            if self._asserted:
                interrupts.level(True)

    def detach(self) -> None:
        """It has gone."""
        with self._lock:
            self._messages = self._interrupts = None

    # Interrupts.

    def message(self, address: int, data: int) -> None:
        """Not used: the client keeps the messages."""
        raise NotImplementedError

    def vector(self, vector: int) -> None:
        """See `Upstream.vector`."""
        interrupts = self._interrupts
        if interrupts is not None:
            interrupts.vector(vector)

    def intx(self, asserted: bool) -> None:
        """See `Upstream.intx`."""
        with self._lock:
            self._asserted = asserted
            if self._interrupts is not None:
                self._interrupts.level(asserted)

    def link_down(self) -> None:
        """See `Upstream.link_down`: a client sees the end of its connection."""
        with self._lock:
            if self._messages is not None:
                self._messages.hang_up()

    # DMA.

    def dma_map(self, address: int, length: int) -> memoryview:
        """See `Upstream.dma_map`."""
        region = self.memory.at(address, length, write=True)
        if region.mapping is None:
            raise DmaError(address, length, "the client does not share this memory")
        if self.log is not None:
            self.log.mapped(address, length)
        start = address - region.address
        return region.mapping.view[start : start + length]

    def dma_file(self, address: int, length: int) -> tuple[int, int] | None:
        """See `Upstream.dma_file`."""
        region = self.memory.at(address, length, write=True)
        if region.file is None:
            return None
        fd, offset = region.file
        return fd, offset + address - region.address

    def dma_read(self, address: int, length: int) -> bytes:
        """See `Upstream.dma_read`."""
        region = self.memory.at(address, length, write=False)
        if region.mapping is not None:
            start = address - region.address
            return bytes(region.mapping.view[start : start + length])
        return self._read_by_messages(address, length)

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """See `Upstream.dma_write`."""
        region = self.memory.at(address, len(data), write=True)
        if region.mapping is not None:
            start = address - region.address
            region.mapping.view[start : start + len(data)] = data
        else:
            self._write_by_messages(address, data)
        if self.log is not None:
            self.log.written(address, len(data))

    def dma_atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        """See `Upstream.dma_atomic`."""
        return apply_atomic(self.dma_map(address, size), operation, operand, compare)

    def _read_by_messages(self, address: int, length: int) -> bytes:
        pieces = [(at, min(self._transfer, length - at)) for at in range(0, length, self._transfer)]
        requests = [wire.DMA_ACCESS.pack(address + at, count) for at, count in pieces]
        replies = self._ask(address, length, Command.DMA_READ, requests)
        for (_, count), reply in zip(pieces, replies, strict=True):
            if len(reply) != wire.DMA_ACCESS.size + count:
                raise DmaError(address, length, f"the client replied with {len(reply)} bytes")
        return b"".join(reply[wire.DMA_ACCESS.size :] for reply in replies)

    def _write_by_messages(self, address: int, data: bytes | memoryview) -> None:
        requests = [
            wire.DMA_ACCESS.pack(address + at, len(piece)) + bytes(piece)
            for at in range(0, len(data), self._transfer)
            for piece in [data[at : at + self._transfer]]
        ]
        self._ask(address, len(data), Command.DMA_WRITE, requests)

    def _ask(
        self, address: int, length: int, command: Command, requests: list[bytes]
    ) -> list[bytes]:
        messages = self._messages
        if messages is None:
            raise DmaError(address, length, "no client is connected")
        try:
            if self._posted and command is Command.DMA_WRITE:
                for request in requests:
                    messages.post(command, request)
                return []
            return messages.request_all(command, requests)
        except OSError as error:
            raise DmaError(address, length, f"the client refuses: {error.strerror}") from None
        except (HungUpError, FormatError) as error:
            raise DmaError(address, length, str(error)) from None
