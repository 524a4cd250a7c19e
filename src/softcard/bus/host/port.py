"""One function's end of the bus: the upstream half of the link."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Sequence

from softcard.bus.host import uapi
from softcard.bus.host.description import Description
from softcard.bus.host.device import ARENA_SIZE, Arena, Device
from softcard.bus.host.memory import CoherentMemory
from softcard.errors import DmaError
from softcard.model.atomic import apply_atomic
from softcard.model.link import MAX_SEGMENTS, AtomicOp, Downstream, LinkFeatures

MAX_BAR = 1 << 40
CONTROL = 2
MSIX_ENABLE, MSI_ENABLE = 1 << 15, 1 << 0

FEATURES = LinkFeatures(
    bus="host", bus_owns_msix=True, max_bar_size=MAX_BAR, shared_memory=False, shared_ranges=True,
    announces_memory=False, moves=True,
)  # fmt: skip

Segments = Sequence[tuple[int, int]]


class Port:
    """What a function sees of the kernel.

    Args:
        device: the card in the kernel.
        function: the downstream half.
        number: 0 to 7.
        description: what the kernel was told of it.
        link_down: pulls the card, from any thread.
    """

    features = FEATURES

    def __init__(
        self,
        device: Device,
        function: Downstream,
        number: int,
        description: Description,
        link_down: Callable[[], None],
    ) -> None:
        self.function = function
        self.link_down = link_down
        self._device = device
        self._number = number
        self._description = description
        self._arena = Arena(device, number)
        self._memory = CoherentMemory(device.fd, number)
        self._lock = threading.Lock()
        self._wired: tuple[int, int] = (uapi.MSIX, 0)
        self._arguments: dict[tuple[int, int], bytes] = {}

    # Interrupts.

    def config_written(self, offset: int, size: int) -> None:
        """The driver has written to the configuration space: are there other vectors now?"""
        description = self._description
        controls = [at + CONTROL for at in (description.msix, description.msi) if at]
        if any(offset < at + 2 and at < offset + size for at in controls):
            wired = self._wired_now()
            if wired != self._wired:
                self._wired = wired
                self.function.vectors_wired(range(wired[1]))

    def _wired_now(self) -> tuple[int, int]:
        description, read = self._description, self.function.config_read
        if description.msix and read(description.msix + CONTROL, 2) & MSIX_ENABLE:
            return uapi.MSIX, description.msix_vectors
        if description.msi:
            control = read(description.msi + CONTROL, 2)
            if control & MSI_ENABLE:
                return uapi.MSI, min(1 << (control >> 4 & 7), description.msi_vectors)
        return uapi.MSIX, 0

    def message(self, address: int, data: int) -> None:
        """Not used: the kernel keeps the messages."""
        raise NotImplementedError

    def vector(self, vector: int) -> None:
        """See `Upstream.vector`."""
        self._interrupt(self._wired[0], vector)

    def intx(self, asserted: bool) -> None:
        """See `Upstream.intx`."""
        self._interrupt(uapi.ASSERT if asserted else uapi.RELEASE, 0)

    def _interrupt(self, kind: int, vector: int) -> None:
        argument = self._arguments.get((kind, vector))
        if argument is None:
            argument = uapi.INTERRUPT.pack(self._number, kind, vector, 0)
            self._arguments[kind, vector] = argument
        try:
            fcntl.ioctl(self._device.fd, uapi.SEND_INTERRUPT, argument)
        except OSError:
            pass  # the card has just been pulled

    # DMA.

    def memory_added(self, address: int, size: int) -> None:
        """A driver has allocated coherent memory."""
        if self._memory.add(address, size):
            self.function.memory_added(address, size)

    def memory_removed(self, address: int, size: int) -> None:
        """It has freed it."""
        if address in self._memory:
            self.function.memory_removed(address, size)
            self._memory.remove(address)

    def close(self) -> None:
        """The card is unplugged."""
        self._memory.close()

    def dma_read(self, address: int, length: int) -> bytes:
        """See `Upstream.dma_read`."""
        view = self._memory.find(address, length)
        return self.dma_read_many([(address, length)])[0] if view is None else bytes(view)

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """See `Upstream.dma_write`."""
        self.dma_write_many([(address, data)])

    def dma_read_many(self, segments: Segments) -> list[bytes]:
        """See `Upstream.dma_read_many`."""
        pieces: list[bytes] = []
        for batch in _batches(segments):
            total = sum(length for _, length in batch)
            with self._lock:
                self._arena.transfer(_joined(batch), write=False)
                pieces.append(bytes(self._arena.data[:total]))
        if len(segments) == 1 and len(pieces) == 1:
            return pieces
        stream = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        found, at = [], 0
        for _, length in segments:
            found.append(bytes(stream[at : at + length]))
            at += length
        return found

    def dma_write_many(self, segments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """See `Upstream.dma_write_many`."""
        rest = memoryview(b"".join(data for _, data in segments))
        for batch in _batches([(address, len(data)) for address, data in segments]):
            total = sum(length for _, length in batch)
            with self._lock:
                self._arena.data[:total] = rest[:total]
                self._arena.transfer(_joined(batch), write=True)
            rest = rest[total:]

    def dma_map(self, address: int, length: int) -> memoryview:
        """See `Upstream.dma_map`."""
        view = self._memory.find(address, length)
        if view is None:
            why = "the driver has not allocated it to be shared: read and write it"
            raise DmaError(address, length, why)
        return view

    def dma_move(self, segments: int, count: int) -> None:
        """See `Upstream.dma_move`."""
        self._device.move(self._number, segments, count)

    def dma_file(self, address: int, length: int) -> tuple[int, int] | None:
        """See `Upstream.dma_file`."""
        return None

    def dma_atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        """See `Upstream.dma_atomic`. The driver may see it happen in two steps."""
        data = memoryview(bytearray(self.dma_read(address, size)))
        before = apply_atomic(data, operation, operand, compare)
        self.dma_write(address, data)
        return before


def _batches(segments: Segments) -> list[list[tuple[int, int]]]:
    """The same in pieces that the arena has room for."""
    if len(segments) <= MAX_SEGMENTS and sum(n for _, n in segments) <= ARENA_SIZE:
        return [list(segments)]
    batches: list[list[tuple[int, int]]] = [[]]
    room = ARENA_SIZE
    for address, length in segments:
        while True:
            part = min(length, room)
            batches[-1].append((address, part))
            address, length, room = address + part, length - part, room - part
            if not room or len(batches[-1]) == MAX_SEGMENTS:
                batches.append([])
                room = ARENA_SIZE
            if not length:
                break
    return batches


def _joined(segments: Segments) -> Segments:
    """The same memory, with neighbours made into one."""
    runs: list[tuple[int, int]] = []
    end = -1
    for address, length in segments:
        if address == end:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((address, length))
        end = address + length
    return runs
