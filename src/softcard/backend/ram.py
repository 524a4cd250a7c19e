"""A block store in memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from softcard.backend.store import Buffer
from softcard.errors import UsageError

PAGE = mmap.PAGESIZE
# <asm-generic/mman.h>: the size is a promise to the driver, not memory that must be there.
MAP_NORESERVE = 0x4000


class RamStore:
    """Bytes in anonymous memory, which take room from the first write near them on: a page, or
    where the system has large ones, 2 MiB, for these are found in half the time.

    The data live as long as the store; `close` does not lose them.

    Args:
        size: bytes.

    Raises:
        UsageError: the machine cannot provide so much address space.
    """

    slow = False
    read_only = False

    def __init__(self, size: int) -> None:
        if size < 1:
            raise UsageError(f"a store of {int(size)} bytes is impossible: it needs at least one")
        self.size = size
        try:
            self._memory = mmap.mmap(
                -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
            )
        except (OSError, OverflowError, ValueError) as error:
            raise UsageError(
                f"no memory for a store of {int(size)} bytes ({error}): choose a smaller size, or "
                "keep the data in a file"
            ) from None
        try:
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # this kernel has pages of one size only
        self._view = memoryview(self._memory)

    @property
    def view(self) -> memoryview | None:
        """The bytes themselves."""
        return self._view

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See `BlockStore.read_into`."""
        view = self._view
        for buffer in buffers:
            end = offset + len(buffer)
            buffer[:] = view[offset:end]
            offset = end

    def write_from(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `BlockStore.write_from`."""
        view = self._view
        for buffer in buffers:
            end = offset + len(buffer)
            view[offset:end] = buffer
            offset = end

    def flush(self) -> None:
        """See `BlockStore.flush`: memory has no cache in front of it."""

    def discard(self, offset: int, length: int) -> None:
        """See `BlockStore.discard`: whole pages go back to the system."""
        end = offset + length
        first, last = -(-offset // PAGE) * PAGE, end // PAGE * PAGE
        if first >= last:
            self._clear(offset, end)
            return
        self._clear(offset, first)
        self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._clear(last, end)

    def write_zeroes(self, offset: int, length: int) -> None:
        """See `BlockStore.write_zeroes`: pages given back read as zero, and there is no room to
        reserve."""
        self.discard(offset, length)

    def _clear(self, start: int, end: int) -> None:
        self._view[start:end] = bytes(end - start)

    def open(self) -> None:
        """See `BlockStore.open`."""

    def close(self) -> None:
        """See `BlockStore.close`."""
