"""Block stores made of parts of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from softcard.backend.store import BlockStore, Buffer


@dataclass(frozen=True, order=True)
class Extent:
    """`size` bytes from offset `start` of a store."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first offset behind it."""
        return self.start + self.size


class PartStore:
    """Extents of a store, end to end, as a store of their own.

    Opening and closing is left to whoever has the whole store.

    Args:
        whole: the store.
        extents: what belongs to this part, in the order of its own offsets.
    """

    def __init__(self, whole: BlockStore, extents: Sequence[Extent]) -> None:
        self._whole = whole
        self.extents = tuple(extents)
        self.size = sum(extent.size for extent in extents)
        # In one piece nothing has to be looked up: the usual case.
        self._start = self.extents[0].start if len(self.extents) == 1 else None
        self._view: memoryview | None = None
        if whole.view is not None and self._start is not None:
            self._view = whole.view[self._start : self._start + self.size]

    @property
    def view(self) -> memoryview | None:
        """The bytes themselves, where they are in memory and in one piece."""
        return self._view

    @property
    def slow(self) -> bool:
        """As the whole store's."""
        return self._whole.slow

    @property
    def read_only(self) -> bool:
        """As the whole store's."""
        return self._whole.read_only

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See `BlockStore.read_into`."""
        if self._start is not None:
            self._whole.read_into(self._start + offset, buffers)
            return
        for place, parts in self._split(offset, [memoryview(b) for b in buffers]):
            self._whole.read_into(place, parts)

    def write_from(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `BlockStore.write_from`."""
        if self._start is not None:
            self._whole.write_from(self._start + offset, buffers)
            return
        for place, parts in self._split(offset, [memoryview(b) for b in buffers]):
            self._whole.write_from(place, parts)

    def flush(self) -> None:
        """See `BlockStore.flush`."""
        self._whole.flush()

    def discard(self, offset: int, length: int) -> None:
        """See `BlockStore.discard`."""
        for place in self._places(offset, length):
            self._whole.discard(place.start, place.size)

    def write_zeroes(self, offset: int, length: int) -> None:
        """See `BlockStore.write_zeroes`."""
        for place in self._places(offset, length):
            self._whole.write_zeroes(place.start, place.size)

    def open(self) -> None:
        """Nothing: see the class."""

    def close(self) -> None:
        """Nothing: see the class."""

    def _places(self, offset: int, length: int) -> Iterator[Extent]:
        """Where `length` bytes at `offset` are in the whole store."""
        for extent in self.extents:
            if length and offset < extent.size:
                size = min(length, extent.size - offset)
                yield Extent(extent.start + offset, size)
                length -= size
                offset = 0
            else:
                offset -= extent.size

    def _split(
        self, offset: int, buffers: list[memoryview]
    ) -> Iterator[tuple[int, list[memoryview]]]:
        """The buffers, cut where one extent ends, each with its place in the whole store."""
        total = sum(len(buffer) for buffer in buffers)
        for place in self._places(offset, total):
            parts, size = [], place.size
            while size:
                head = buffers[0][:size]
                parts.append(head)
                size -= len(head)
                if len(head) == len(buffers[0]):
                    buffers.pop(0)
                else:
                    buffers[0] = buffers[0][len(head) :]
            yield place.start, parts
