"""Accesses of a client to a function's regions, as messages."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from softcard.bus.vfio_user.layout import CONFIG_SIZE_EXTENDED
from softcard.model.link import Downstream, all_ones
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Region

BARS = 6
ACCESS_SIZE = wire.ACCESS.size


class Accesses:
    """Makes them; every method raises `OSError` or `struct.error` where the request is malformed.

    Args:
        function: whose regions these are.
        sizes: bytes of each region.
    """

    def __init__(self, function: Downstream, sizes: Sequence[int]) -> None:
        self.function = function
        self._sizes = sizes

    def read(self, payload: bytes, fds: list[int]) -> bytes:
        """REGION_READ."""
        offset, region, count = wire.ACCESS.unpack(payload)
        self._check(offset, region, count)
        if region == Region.CONFIG:
            data = b"".join(
                self.function.config_read(at, size).to_bytes(size, "little")
                for at, size in _aligned(offset, count)
            )
        elif region < BARS:
            data = self.function.read_block(region, offset, count)
        else:
            data = b"\xff" * count
        return payload + data

    def write(self, payload: bytes, fds: list[int]) -> bytes:
        """REGION_WRITE."""
        offset, region, count = wire.ACCESS.unpack_from(payload)
        if len(payload) != ACCESS_SIZE + count:
            raise OSError(errno.EINVAL, f"{len(payload) - ACCESS_SIZE} bytes to write {count}")
        if region < BARS and 0 < count <= 8 and offset + count <= self._sizes[region]:
            value = int.from_bytes(payload[ACCESS_SIZE:], "little")
            self.function.write(region, offset, count, value)
        else:
            self._write_block(offset, region, count, payload[ACCESS_SIZE:])
        return payload[:ACCESS_SIZE]

    def _write_block(self, offset: int, region: int, count: int, data: bytes) -> None:
        self._check(offset, region, count)
        if region == Region.CONFIG:
            for at, size in _aligned(offset, count):
                part = data[at - offset :][:size]
                self.function.config_write(at, size, int.from_bytes(part, "little"))
        elif region < BARS:
            self.function.write_block(region, offset, data)

    def write_multi(self, payload: bytes, fds: list[int]) -> bytes:
        """REGION_WRITE_MULTI."""
        (count,) = wire.WRITE_COUNT.unpack_from(payload)
        writes = payload[wire.WRITE_COUNT.size :]
        if len(writes) != count * wire.SHORT_WRITE.size:
            raise OSError(errno.EINVAL, f"{len(writes)} bytes for {count} writes")
        sizes, write = self._sizes, self.function.write
        for offset, region, size, value in wire.SHORT_WRITE.iter_unpack(writes):
            if region < BARS and 0 < size <= 8 and offset + size <= sizes[region]:
                write(region, offset, size, value & all_ones(size))
            else:
                if size > 8:
                    raise OSError(errno.EINVAL, f"a short write of {size} bytes")
                data = (value & all_ones(size)).to_bytes(size, "little")
                self._write_block(offset, region, size, data)
        return wire.WRITE_COUNT.pack(count)

    def _check(self, offset: int, region: int, count: int) -> None:
        if region >= wire.REGIONS or not count or count > wire.DEFAULT_TRANSFER:
            raise OSError(errno.EINVAL, f"an access of {count} bytes to region {region}")
        if offset + count > self._sizes[region]:
            raise OSError(errno.EINVAL, f"{count} bytes at {offset:#x} are outside region {region}")


def _aligned(offset: int, count: int) -> list[tuple[int, int]]:
    """Offset and size of the naturally aligned accesses that a longer one is made of."""
    found = []
    end = min(offset + count, CONFIG_SIZE_EXTENDED)
    while offset < end:
        size = 4
        while offset % size or offset + size > end:
            size //= 2
        found.append((offset, size))
        offset += size
    return found
