"""The guest's memory, as the vhost-user memory table shares it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from softcard.errors import DmaError
from softcard.model.mapping import Mapping

Removed = Callable[[int, int], None]


@dataclass(frozen=True)
class Region:
    """`size` bytes from guest address `address`, mapped; in the file `fd` they are those at
    `offset`."""

    address: int
    size: int
    mapping: Mapping
    fd: int
    offset: int


class GuestMemory:
    """Memory by guest address, which under User Mode Linux is the DMA address as well."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def add(self, address: int, size: int, fd: int, offset: int) -> None:
        """Map a region of the file `fd`.

        Raises:
            ValueError, OSError: the file does not hold what was promised.
        """
        mapping = Mapping(fd, offset, size)
        self.regions.append(Region(address, size, mapping, os.dup(fd), offset))

    def clear(self, removed: Removed) -> None:
        """Forget every region, after telling who holds views."""
        for region in self.regions:
            removed(region.address, region.size)
            region.mapping.revoke()
            os.close(region.fd)
        self.regions.clear()

    def map(self, address: int, length: int) -> memoryview:
        """The memory itself.

        Raises:
            DmaError: not all of it is the guest's memory.
        """
        region, start = self._find(address, length)
        return region.mapping.view[start : start + length]

    def file(self, address: int, length: int) -> tuple[int, int]:
        """The file that holds the memory, and where; see `Upstream.dma_file`.

        Raises:
            DmaError: not all of it is the guest's memory.
        """
        region, start = self._find(address, length)
        return region.fd, region.offset + start

    def _find(self, address: int, length: int) -> tuple[Region, int]:
        for region in self.regions:
            start = address - region.address
            if 0 <= start and start + length <= region.size and length >= 0:
                return region, start
        raise DmaError(address, length, "this is not memory of the guest")
