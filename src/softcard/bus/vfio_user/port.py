"""One function's end of the bus: the upstream half of the link."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from softcard.bus.vfio_user.dirty import DirtyLog
from softcard.bus.vfio_user.interrupts import Interrupts
from softcard.bus.vfio_user.memory import ClientMemory, Region
from softcard.bus.vfio_user.version import Terms
from softcard.errors import DmaError
from softcard.model.atomic import apply_atomic
from softcard.model.link import AtomicOp, LinkFeatures
from softcard.model.mapping import Mapping
from softcard.wire import vfio_user as wire
from softcard.wire.messages import Messages
from softcard.wire.stream import HungUpError
from softcard.wire.vfio_user import Command, FormatError

FEATURES = LinkFeatures(bus="vfio-user", bus_owns_msix=True, shared_ranges=True)
FEATURES_BY_MESSAGES = LinkFeatures(
    bus="vfio-user", bus_owns_msix=True, shared_ranges=True, shared_memory=False
)
LOST = "the client has cut its memory short"


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
        self._short = False
        self._asserted = False
        self._down = False
        self._lock = threading.Lock()

    @property
    def features(self) -> LinkFeatures:
        """See `Upstream.features`."""
        return FEATURES if self.memory.shared else FEATURES_BY_MESSAGES

    def attach(self, messages: Messages, interrupts: Interrupts, terms: Terms) -> None:
        """A client is there.

        Args:
            messages: what DMA that is not shared goes by.
            interrupts: the function's.
            terms: what was agreed on.
        """
        self._transfer, self._posted, self._short = terms.transfer, terms.by_messages, False
        with self._lock:
            self._messages, self._interrupts = messages, interrupts
            if self._asserted:
                interrupts.level(True)
            if self._down:
                messages.hang_up()

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
            self._down = True
            if self._messages is not None:
                self._messages.hang_up()

    # DMA.

    def dma_move(self, segments: int, count: int) -> None:
        """Not used: `LinkFeatures.moves` is not set."""
        raise NotImplementedError

    def dma_map(self, address: int, length: int) -> memoryview:
        """See `Upstream.dma_map`."""
        region = self.memory.at(address, length, write=True)
        if region.mapping is None:
            raise DmaError(address, length, "the client does not share this memory")
        if self.log is not None:
            self.log.mapped(address, length)
        return _part(region, region.mapping, address, length)

    def dma_file(self, address: int, length: int) -> tuple[int, int] | None:
        """See `Upstream.dma_file`."""
        region = self.memory.at(address, length, write=False)
        # Whoever has the file could write what may only be read.
        if region.file is None or not region.writable:
            return None
        fd, offset = region.file
        return fd, offset + address - region.address

    def dma_read(self, address: int, length: int) -> bytes:
        """See `Upstream.dma_read`."""
        region = self.memory.at(address, length, write=False)
        mapping = region.mapping
        if mapping is None:
            return self._read_far([(address, length)])[0]
        data = bytes(_part(region, mapping, address, length))
        if mapping.lost:
            raise DmaError(address, length, LOST)
        return data

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """See `Upstream.dma_write`."""
        region = self.memory.at(address, len(data), write=True)
        mapping = region.mapping
        if mapping is None:
            self._write_far([(address, data)])
            return
        _part(region, mapping, address, len(data))[:] = data
        if mapping.lost:
            raise DmaError(address, len(data), LOST)
        if self.log is not None:
            self.log.written(address, len(data))

    def dma_atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        """See `Upstream.dma_atomic`."""
        return apply_atomic(self.dma_map(address, size), operation, operand, compare)

    def dma_read_many(self, segments: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Upstream.dma_read_many`."""
        found: list[bytes] = []
        far: list[tuple[int, int]] = []
        for address, length in segments:
            region = self.memory.at(address, length, write=False)
            if region.mapping is None:
                far.append((address, length))
                found.append(b"")
            else:
                found.append(self.dma_read(address, length))
        if not far:
            return found
        read = iter(self._read_far(far))
        return [
            data if data or not length else next(read)
            for data, (_, length) in zip(found, segments, strict=True)
        ]

    def dma_write_many(self, segments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """See `Upstream.dma_write_many`."""
        far: list[tuple[int, bytes | memoryview]] = []
        for address, data in segments:
            if self.memory.at(address, len(data), write=True).mapping is None:
                far.append((address, data))
            else:
                self.dma_write(address, data)
        if far:
            self._write_far(far)

    # Memory that only messages reach.

    def _read_far(self, segments: Sequence[tuple[int, int]]) -> list[bytes]:
        """Neighbours are read as one; a long piece in several messages."""
        runs = self._joined([(address, length) for address, length in segments if length])
        pieces = [
            (address + at, min(self._transfer, length - at))
            for address, length in runs
            for at in range(0, length, self._transfer)
        ]
        requests = [wire.DMA_ACCESS.pack(*piece) for piece in pieces]
        replies = self._ask(pieces, Command.DMA_READ, requests)
        for (address, count), reply in zip(pieces, replies, strict=True):
            if len(reply) != wire.DMA_ACCESS.size + count:
                raise DmaError(address, count, f"the client replied with {len(reply)} bytes")
        stream = memoryview(b"".join(self._data_of(reply) for reply in replies))
        found, at = [], 0
        for _, length in segments:
            found.append(bytes(stream[at : at + length]))
            at += length
        return found

    def _data_of(self, reply: bytes) -> bytes:
        """The data of a DMA_READ reply."""
        form = wire.DMA_ACCESS
        if reply[wire.SHORT_DMA_ACCESS.size : form.size].strip(b"\0"):
            # This would be the upper half of a count of 4 GiB or more: it is data.
            self._short = True
        if self._short:
            at = wire.SHORT_DMA_ACCESS.size
            return reply[at : at + len(reply) - form.size]
        return reply[form.size :]

    def _write_request(self, address: int, data: bytes | memoryview) -> bytes:
        if self._short:
            padding = bytes(wire.DMA_ACCESS.size - wire.SHORT_DMA_ACCESS.size)
            return wire.SHORT_DMA_ACCESS.pack(address, len(data)) + bytes(data) + padding
        return wire.DMA_ACCESS.pack(address, len(data)) + bytes(data)

    def _joined(self, segments: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The same memory, with neighbours in one region made into one."""
        runs: list[tuple[int, int]] = []
        end = 0
        for address, length in segments:
            if runs and address == runs[-1][0] + runs[-1][1] and address + length <= end:
                runs[-1] = (runs[-1][0], runs[-1][1] + length)
            else:
                runs.append((address, length))
                region = self.memory.at(address, length, write=False)
                end = region.address + region.size
        return runs

    def _write_far(self, segments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        pieces = [
            (address + at, data[at : at + self._transfer])
            for address, data in segments
            for at in range(0, len(data), self._transfer)
        ]
        requests = [self._write_request(at, piece) for at, piece in pieces]
        sizes = [(at, len(piece)) for at, piece in pieces]
        self._ask(sizes, Command.DMA_WRITE, requests)
        if self.log is not None:
            for at, size in sizes:
                self.log.written(at, size)

    def _ask(
        self, pieces: Sequence[tuple[int, int]], command: Command, requests: Sequence[bytes]
    ) -> list[bytes]:
        messages = self._messages
        if not pieces:
            return []
        address, length = pieces[0]
        if messages is None:
            raise DmaError(address, length, "no client is connected")
        try:
            if self._posted and command is Command.DMA_WRITE:
                messages.post_all(command, requests)
                return []
            return messages.request_all(command, requests)
        except OSError as error:
            raise DmaError(address, length, f"the client refuses: {error.strerror}") from None
        except (HungUpError, FormatError) as error:
            raise DmaError(address, length, str(error)) from None


def _part(region: Region, mapping: Mapping, address: int, length: int) -> memoryview:
    start = address - region.address
    try:
        part = mapping.view[start : start + length]
    except ValueError:
        raise DmaError(address, length, "the client has just unmapped this memory") from None
    if mapping.lost:
        raise DmaError(address, length, LOST)
    return part
