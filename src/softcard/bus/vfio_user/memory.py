"""The client's memory, as DMA_MAP and DMA_UNMAP name it."""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from softcard.errors import DmaError
from softcard.model.mapping import Mapping

MAX_REGIONS = 65535
ADDRESS_LIMIT = 1 << 64


@dataclass(frozen=True, slots=True)
class Region:
    """`size` bytes from bus address `address`: `mapping` of `file`, a descriptor and an offset, or
    without both, where only messages reach them."""

    address: int
    size: int
    readable: bool
    writable: bool
    mapping: Mapping | None
    file: tuple[int, int] | None


class ClientMemory:
    """Regions by bus address; they do not overlap.

    Attributes:
        shared: nothing has to go by messages so far.
    """

    def __init__(self) -> None:
        # Replaced as a whole, for other threads look addresses up meanwhile.
        self._table: tuple[list[int], list[Region]] = ([], [])
        self._mapped = self._unmapped = 0
        self.shared = True

    def add(
        self,
        address: int,
        size: int,
        *,
        readable: bool,
        writable: bool,
        fd: int | None,
        offset: int,
    ) -> None:
        """A region appears; `fd` is this object's unless it raises.

        Raises:
            OSError: it overlaps another (EEXIST), there are too many (ENOSPC), or the numbers or
                the file are wrong.
        """
        if size <= 0 or address + size > ADDRESS_LIMIT:
            raise OSError(errno.EINVAL, f"{size} bytes at {address:#x} are no memory")
        starts, regions = self._table
        if len(regions) >= MAX_REGIONS:
            raise OSError(errno.ENOSPC, f"there are {MAX_REGIONS} regions already")
        at = bisect_right(starts, address)
        before, after = regions[max(at - 1, 0) : at], regions[at : at + 1]
        if (before and before[0].address + before[0].size > address) or (
            after and address + size > after[0].address
        ):
            raise OSError(errno.EEXIST, f"{size} bytes at {address:#x} overlap another region")
        try:
            mapping = None if fd is None else Mapping(fd, offset, size, writable=writable)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from None
        file = None if fd is None else (fd, offset)
        region = Region(address, size, readable, writable, mapping, file)
        self._set([*regions[:at], region, *regions[at:]])
        self._count(region, 1)

    def find(self, address: int, size: int) -> Region:
        """The region that was added with exactly these numbers.

        Raises:
            OSError: there is none (ENOENT).
        """
        starts, regions = self._table
        at = bisect_right(starts, address) - 1
        if at >= 0 and starts[at] == address and regions[at].size == size:
            return regions[at]
        raise OSError(errno.ENOENT, f"{size} bytes at {address:#x} are not mapped as such")

    def remove(self, region: Region) -> None:
        """A region disappears, from views of it as well."""
        starts, regions = self._table
        at = bisect_left(starts, region.address)
        self._set(regions[:at] + regions[at + 1 :])
        self._count(region, -1)
        if region.mapping is not None:
            region.mapping.revoke()
        if region.file is not None:
            os.close(region.file[0])

    @property
    def regions(self) -> list[Region]:
        """All of them, by address."""
        return self._table[1]

    def _set(self, regions: list[Region]) -> None:
        self._table = ([region.address for region in regions], regions)

    def _count(self, region: Region, change: int) -> None:
        # A VMM gives no file for its ROMs, which are read-only and no memory for a driver.
        if region.mapping is not None:
            self._mapped += change
        elif region.writable:
            self._unmapped += change
        self.shared = bool(self._mapped) or not self._unmapped

    def at(self, address: int, length: int, *, write: bool) -> Region:
        """The region that an access lies in as a whole, if its kind is allowed.

        Raises:
            DmaError: there is none.
        """
        starts, regions = self._table
        at = bisect_right(starts, address) - 1
        if at >= 0 and length >= 0:
            region = regions[at]
            if address + length <= region.address + region.size:
                if region.writable if write else region.readable:
                    return region
                kind = "writing" if write else "reading"
                raise DmaError(address, length, f"the client does not allow {kind}")
        raise DmaError(address, length, "the client has not mapped this memory")
