"""What a client asks about a function before it uses it."""

from __future__ import annotations

import errno
import struct

from softcard.bus.vfio_user.layout import Layout, region_info
from softcard.wire import vfio_user as wire


class Queries:
    """Answers them; every method raises `OSError` or `struct.error` where the query is malformed.

    Args:
        layout: the function's regions and interrupts.
        passes_fds: descriptors can pass, so that memory can be mapped.
    """

    def __init__(self, layout: Layout, *, passes_fds: bool) -> None:
        self._layout = layout
        self._shared = layout.shared if passes_fds else {}

    def device_info(self, payload: bytes, fds: list[int]) -> bytes:
        """DEVICE_GET_INFO."""
        _room(payload, wire.DEVICE_INFO)
        return wire.DEVICE_INFO.pack(
            wire.DEVICE_INFO.size,
            wire.DEVICE_RESETS | wire.DEVICE_IS_PCI,
            wire.REGIONS,
            wire.IRQS,
        )

    def region_info(self, payload: bytes) -> tuple[bytes, int | None]:
        """DEVICE_GET_REGION_INFO; the descriptor goes with the reply, and stays ours."""
        room = _room(payload, wire.REGION_INFO)
        return region_info(self._layout.sizes, self._shared, self._region(payload, 8), room)

    def region_io_fds(self, payload: bytes, fds: list[int]) -> bytes:
        """DEVICE_GET_REGION_IO_FDS: there are none."""
        _room(payload, wire.REGION_IO_FDS)
        index = self._region(payload, 8)
        return wire.REGION_IO_FDS.pack(wire.REGION_IO_FDS.size, 0, index, 0)

    @staticmethod
    def _region(payload: bytes, at: int) -> int:
        index = int.from_bytes(payload[at : at + 4], "little")
        if index >= wire.REGIONS:
            raise OSError(errno.EINVAL, f"there is no region {index}")
        return index

    def irq_info(self, payload: bytes, fds: list[int]) -> bytes:
        """DEVICE_GET_IRQ_INFO."""
        _room(payload, wire.IRQ_INFO)
        _, _, kind, _ = wire.IRQ_INFO.unpack_from(payload)
        if kind >= wire.IRQS:
            raise OSError(errno.EINVAL, f"there is no interrupt type {kind}")
        flags = wire.IRQ_EVENTFD | (
            wire.IRQ_MASKABLE | wire.IRQ_AUTOMASKED if kind == wire.Irq.INTX else 0
        )
        return wire.IRQ_INFO.pack(wire.IRQ_INFO.size, flags, kind, self._layout.irqs[kind])


def _room(payload: bytes, form: struct.Struct) -> int:
    """The size that the reply may have at most, which every query begins with."""
    if len(payload) < form.size:
        raise OSError(errno.EINVAL, f"a query of {len(payload)} bytes, not {form.size}")
    room = int.from_bytes(payload[:4], "little")
    if room < form.size:
        raise OSError(errno.EINVAL, f"a query with room for {room} bytes, not {form.size}")
    return room
