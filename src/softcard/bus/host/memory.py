"""Coherent memory of a function's drivers, mapped into this process."""

from __future__ import annotations

import logging
import mmap
from bisect import bisect_right, insort

from softcard.bus.host import uapi
from softcard.model.faults import replace
from softcard.model.mapping import address_of

log = logging.getLogger("softcard.bus.host")


class CoherentMemory:
    """What drivers have allocated for them and the card to look at together: rings, lists.

    Args:
        fd: the card's descriptor.
        function: its function's number.
    """

    def __init__(self, fd: int, function: int) -> None:
        self._fd = fd
        self._base = (function + 1) * uapi.MAP_FUNCTION
        self._starts: list[int] = []
        self._views: dict[int, memoryview] = {}
        self._mapped: dict[int, mmap.mmap] = {}

    def add(self, address: int, size: int) -> bool:
        """Map memory that a driver has allocated; False where it, or the card, is gone already."""
        try:
            mapped = mmap.mmap(self._fd, size, offset=self._base + address)
        except OSError as error:
            log.debug("%d bytes at %#x cannot be mapped: %s", size, address, error.strerror)
            return False
        self._mapped[address] = mapped
        self._views[address] = memoryview(mapped)
        insort(self._starts, address)
        return True

    def remove(self, address: int) -> None:
        """The driver has freed it: take it away, from who still holds views of it as well."""
        self._starts.remove(address)
        self._views.pop(address).release()
        mapped = self._mapped.pop(address)
        place, size = address_of(mapped), len(mapped)
        try:
            mapped.close()
        except BufferError:
            # Views are left: the addresses stay theirs.
            replace(place, size)

    def __contains__(self, address: int) -> bool:
        return address in self._mapped

    def close(self) -> None:
        """Take all of it away."""
        for address in list(self._starts):
            self.remove(address)

    def find(self, address: int, length: int) -> memoryview | None:
        """The memory itself; None where it is not, as a whole, in one allocation."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        offset = address - self._starts[at]
        view = self._views[self._starts[at]]
        return view[offset : offset + length] if offset + length <= len(view) else None
