"""What a client asks of a function before it uses it: regions and interrupts, read from the
function's own configuration space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softcard.model.link import Downstream, SharedRange
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Irq, Region

BARS = 6
HEADER_TYPE, STATUS, CAPABILITIES, INTERRUPT_PIN = 0x0E, 0x06, 0x34, 0x3D
BAR_BASE, ROM_BASE = 0x10, 0x30
STATUS_CAPABILITIES = 1 << 4
IO_SPACE, TYPE_64 = 1 << 0, 0x4
MEMORY_MASK, ROM_MASK = ~0xF, ~0x7FF
MSI, PCI_EXPRESS, MSIX = 0x05, 0x10, 0x11
CONFIG_SIZE, CONFIG_SIZE_EXTENDED = 256, 4096
MAX_CAPABILITIES = 48


@dataclass(frozen=True)
class Layout:
    """Sizes of the regions, numbers of interrupts, and memory that can be mapped.

    Attributes:
        sizes: bytes of each region; 0 where there is none.
        irqs: interrupts of each type.
        shared: plain memory, by BAR.
    """

    sizes: Sequence[int]
    irqs: Sequence[int]
    shared: dict[int, list[SharedRange]]


def layout_of(function: Downstream) -> Layout:
    """Look at a function that was just reset."""
    sizes = [0] * wire.REGIONS
    for bar, size in _bar_sizes(function).items():
        sizes[bar] = size
    sizes[Region.ROM] = _size(function, ROM_BASE, ROM_MASK)
    capabilities = _capabilities(function)
    extended = PCI_EXPRESS in capabilities
    sizes[Region.CONFIG] = CONFIG_SIZE_EXTENDED if extended else CONFIG_SIZE
    irqs = [0] * wire.IRQS
    irqs[Irq.INTX] = 1 if function.config_read(INTERRUPT_PIN, 1) else 0
    if MSI in capabilities:
        irqs[Irq.MSI] = 1 << (function.config_read(capabilities[MSI] + 2, 2) >> 1 & 7)
    if MSIX in capabilities:
        irqs[Irq.MSIX] = (function.config_read(capabilities[MSIX] + 2, 2) & 0x7FF) + 1
    shared: dict[int, list[SharedRange]] = {}
    for area in function.shared_ranges():
        if area.shadow:
            continue  # who maps a region may write to all of it
        known = shared.setdefault(area.bar, [])
        # One file, and one place in it for the whole region, is all that a reply can name.
        if _base(area) >= 0 and (not known or _place(area) == _place(known[0])):
            known.append(area)
    return Layout(sizes, irqs, shared)


def _base(area: SharedRange) -> int:
    """Where the region begins in the area's file."""
    return area.fd_offset - area.offset


def _place(area: SharedRange) -> tuple[int, int]:
    return area.fd, _base(area)


def _bar_sizes(function: Downstream) -> dict[int, int]:
    sizes = {}
    bar = 0
    while bar < BARS:
        at = BAR_BASE + 4 * bar
        low = function.config_read(at, 4)
        if low & IO_SPACE or low & TYPE_64 == 0 or bar == BARS - 1:
            sizes[bar] = _size(function, at, MEMORY_MASK)
            bar += 1
            continue
        function.config_write(at, 4, 0xFFFFFFFF)
        function.config_write(at + 4, 4, 0xFFFFFFFF)
        mask = function.config_read(at + 4, 4) << 32 | function.config_read(at, 4) & MEMORY_MASK
        function.config_write(at, 4, low)
        function.config_write(at + 4, 4, 0)
        sizes[bar] = -mask & (1 << 64) - 1
        bar += 2
    return sizes


def _size(function: Downstream, at: int, significant: int) -> int:
    before = function.config_read(at, 4)
    function.config_write(at, 4, 0xFFFFFFFF & significant)
    mask = function.config_read(at, 4) & significant
    function.config_write(at, 4, before)
    return -mask & 0xFFFFFFFF


def _capabilities(function: Downstream) -> dict[int, int]:
    """Offset of the first capability of each kind."""
    found: dict[int, int] = {}
    if not function.config_read(STATUS, 2) & STATUS_CAPABILITIES:
        return found
    at = function.config_read(CAPABILITIES, 1) & ~3
    for _ in range(MAX_CAPABILITIES):
        if not at:
            break
        found.setdefault(function.config_read(at, 1), at)
        at = function.config_read(at + 1, 1) & ~3
    return found


def region_info(
    sizes: Sequence[int], shared: Mapping[int, list[SharedRange]], index: int, room: int
) -> tuple[bytes, int | None]:
    """The reply to DEVICE_GET_REGION_INFO, and the descriptor that goes with it.

    Args:
        sizes: bytes of each region.
        shared: what the client can map, by region.
        index: the region.
        room: bytes of the reply that the client takes; where that is too little, it gets the
            first part, which says how much it must ask for.
    """
    size, flags, areas = sizes[index], 0, shared.get(index, [])
    if size:
        flags = wire.REGION_READABLE | wire.REGION_WRITABLE
    capability = b""
    if areas:
        flags |= wire.REGION_MMAP | wire.REGION_CAPABILITIES
        capability = (
            wire.CAPABILITY.pack(wire.CAPABILITY_SPARSE_MMAP, 1, 0)
            + wire.SPARSE_MMAP.pack(len(areas), 0)
            + b"".join(wire.AREA.pack(area.offset, area.size) for area in areas)
        )
    needed = wire.REGION_INFO.size + len(capability)
    at = wire.REGION_INFO.size if capability else 0
    base = _base(areas[0]) if areas else 0
    info = wire.REGION_INFO.pack(needed, flags, index, at, size, base)
    if room < needed:
        return info, None
    return info + capability, areas[0].fd if areas else None
