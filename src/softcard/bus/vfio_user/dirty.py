"""Which pages of the client's memory the function has written: DMA logging."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

PAGE = 4096
WORD_BITS, WORD_BYTES = 64, 8


class DirtyLog:
    """Remembers writes while logging is on, by page of 4 KiB.

    What a card does with a view of memory cannot be seen: every page that it has one of counts as
    written each time.
    """

    def __init__(self) -> None:
        self.logging = False
        self._ranges: list[tuple[int, int]] = []
        self._pages: set[int] = set()
        self._mapped: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def start(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Log writes to these ranges, `(address, length)`; to all memory where there are none.

        Raises:
            OSError: a range is impossible (EINVAL), or logging is on (EBUSY).
        """
        if self.logging:
            raise OSError(errno.EBUSY, "DMA logging has been started already")
        if any(not length or address + length > 1 << 64 for address, length in ranges):
            raise OSError(errno.EINVAL, "a range for DMA logging is impossible")
        with self._lock:
            self._ranges = list(ranges)
            self._pages.clear()
            self.logging = True

    def stop(self) -> None:
        """Log no more, and forget."""
        with self._lock:
            self.logging = False
            self._pages.clear()

    def written(self, address: int, length: int) -> None:
        """The function has written memory; from any thread."""
        if self.logging and length:
            with self._lock:
                self._pages.update(range(address // PAGE, (address + length - 1) // PAGE + 1))

    def mapped(self, address: int, length: int) -> None:
        """The function has got a view of memory; from any thread."""
        if length:
            with self._lock:
                self._mapped.add((address, length))

    def removed(self, address: int, size: int) -> None:
        """Views of this memory are gone."""
        with self._lock:
            self._mapped = {
                (at, length)
                for at, length in self._mapped
                if at + length <= address or address + size <= at
            }

    def report(self, address: int, length: int, page_size: int) -> bytes:
        """A bit for each page of `page_size` bytes from `address` on, in words of 64; what is
        reported is forgotten.

        Raises:
            OSError: logging is off, or the page size is no power of two (EINVAL).
        """
        if not self.logging or not length or page_size & (page_size - 1) or not page_size:
            raise OSError(errno.EINVAL, f"no report of {length} bytes by {page_size}")
        end = address + length
        pages = (length + page_size - 1) // page_size
        bitmap = bytearray((pages + WORD_BITS - 1) // WORD_BITS * WORD_BYTES)
        with self._lock:
            first, last = address // PAGE, (end - 1) // PAGE
            inside = {page for page in self._pages if first <= page <= last}
            self._pages -= inside
            written = [(page * PAGE, PAGE) for page in inside] + list(self._mapped)
        for at, size in written:
            for start, stop in self._cut(at, at + size):
                start, stop = max(start, address), min(stop, end)
                if start < stop:
                    _set(bitmap, (start - address) // page_size, (stop - 1 - address) // page_size)
        return bytes(bitmap)

    def _cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts that are to be logged."""
        if not self._ranges:
            return [(start, stop)]
        parts = [(max(start, at), min(stop, at + length)) for at, length in self._ranges]
        return [(first, last) for first, last in parts if first < last]


def _set(bitmap: bytearray, first: int, last: int) -> None:
    """Set the bits from `first` to `last`."""
    low, high = first >> 3, last >> 3
    head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
    if low == high:
        bitmap[low] |= head & tail
        return
    bitmap[low] |= head
    bitmap[low + 1 : high] = b"\xff" * (high - low - 1)
    bitmap[high] |= tail
