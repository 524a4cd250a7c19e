"""DMA as a card's author uses it: by bus address, checked, zero-copy where the bus can."""

from __future__ import annotations

import ctypes
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from softcard.errors import DmaError
from softcard.model.link import SEGMENT, AtomicOp, Upstream


class Dma:
    """The memory behind the bus, by bus address, as the driver gave it to the card.

    Every method raises `DmaError` when the driver has not enabled bus mastering, or where the bus
    knows that the driver has not mapped the memory.
    """

    def __init__(self) -> None:
        self._upstream: Upstream | None = None
        self._enabled = False
        self._ranges: list[tuple[int, int]] = []

    def attach(self, upstream: Upstream | None) -> None:
        """Use this bus from now on."""
        self._upstream = upstream
        self._ranges.clear()

    def added(self, address: int, size: int) -> None:
        """The bus has announced memory."""
        insort(self._ranges, (address, size))

    def removed(self, address: int, size: int) -> None:
        """The bus has taken memory away."""
        ranges = self._ranges
        first, last = bisect_left(ranges, (address, 0)), bisect_left(ranges, (address + size, 0))
        if first and sum(ranges[first - 1]) > address:
            first -= 1
        self._ranges = ranges[:first] + ranges[last:]

    def enable(self, enabled: bool) -> None:
        """Follow the bus master enable bit."""
        self._enabled = enabled

    @property
    def allowed(self) -> bool:
        """Whether the card is plugged in, awake, and the driver has set bus master enable.

        Who keeps views from `map` asks before using them.
        """
        return self._enabled and self._upstream is not None

    @property
    def shared(self) -> bool:
        """Whether `map` can work on this bus."""
        return self._upstream is not None and self._upstream.features.shared_memory

    @property
    def moves(self) -> bool:
        """Whether `move` works on this bus, and `map` does for memory that it announced."""
        return self._upstream is not None and self._upstream.features.moves

    @property
    def shares_bars(self) -> bool:
        """Whether the driver's side may have mapped the plain memory of BARs."""
        return self._upstream is not None and self._upstream.features.shared_ranges

    def _bus(self, address: int, length: int) -> Upstream:
        if self._upstream is not None and self._enabled:
            return self._upstream
        why = "the driver has not set bus master enable" if self._upstream else "not plugged in"
        raise DmaError(address, length, why)

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes from bus address `address`."""
        return self._bus(address, length).dma_read(address, length)

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Store `data` at bus address `address`."""
        self._bus(address, len(data)).dma_write(address, data)

    def read_many(self, segments: Sequence[tuple[int, int]]) -> list[bytes]:
        """What is at each address and length; much faster than one by one where the bus reaches
        memory by messages, over a network above all."""
        return self._bus(*segments[0]).dma_read_many(segments) if segments else []

    def write_many(self, segments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """Store data at addresses, in their order; see `read_many`."""
        if segments:
            address, data = segments[0]
            self._bus(address, len(data)).dma_write_many(segments)

    def move(self, segments: int, count: int) -> None:
        """Move memory straight between this process and the driver; see `Upstream.dma_move`."""
        if self._upstream is None or not self._enabled:
            self._bus(*SEGMENT.unpack(ctypes.string_at(segments, SEGMENT.size))[::2])
        else:
            self._upstream.dma_move(segments, count)

    def map(self, address: int, length: int) -> memoryview:
        """The memory itself, without a copy, writable.

        It may be used until `Function.on_memory_removed` names it or the card is unplugged.
        """
        return self._bus(address, length).dma_map(address, length)

    def view(self, address: int, length: int) -> memoryview | None:
        """The same; None where the bus does not share this memory.

        Raises:
            DmaError: where it shares all, and the driver has not mapped this.
        """
        if self.shared:
            return self.map(address, length)
        found = self.window(address) if self.moves else None
        if found is None:
            return None
        offset = address - found[0]
        return found[1][offset : offset + length] if offset + length <= len(found[1]) else None

    def window(self, address: int) -> tuple[int, memoryview] | None:
        """All of the memory around `address` that the bus announced as one, and the bus address
        that it begins at; None where it announced none. It may be used as long as that of `map`.
        """
        at = bisect_right(self._ranges, (address, 1 << 64)) - 1
        if at < 0 or address >= sum(self._ranges[at]):
            return None
        start, size = self._ranges[at]
        return start, self.map(start, size)

    def fetch_add(self, address: int, size: int, addend: int) -> int:
        """Add to 4 or 8 bytes atomically; returns the former value."""
        return self._atomic(address, size, AtomicOp.FETCH_ADD, addend, 0)

    def swap(self, address: int, size: int, value: int) -> int:
        """Store 4 or 8 bytes atomically; returns the former value."""
        return self._atomic(address, size, AtomicOp.SWAP, value, 0)

    def compare_and_swap(self, address: int, size: int, compare: int, value: int) -> int:
        """Store `value` in 4 or 8 bytes if they hold `compare`; returns the former value."""
        return self._atomic(address, size, AtomicOp.COMPARE_AND_SWAP, value, compare)

    def _atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        if size not in (4, 8) or address % size:
            raise DmaError(address, size, "an atomic needs 4 or 8 bytes, naturally aligned")
        return self._bus(address, size).dma_atomic(address, size, operation, operand, compare)
