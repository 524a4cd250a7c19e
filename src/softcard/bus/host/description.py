"""What the kernel module has to know of a function, read from its configuration space."""

from __future__ import annotations

from dataclasses import dataclass

from softcard.bus.host import uapi
from softcard.errors import PlugError
from softcard.model.link import Downstream

STATUS, CAPABILITIES, BAR_BASE = 0x06, 0x34, 0x10
STATUS_CAPABILITIES = 1 << 4
IO_SPACE, TYPE_64 = 1 << 0, 0x4
MEMORY_MASK = ~0xF
POWER_MANAGEMENT, MSI, EXPRESS, MSIX = 0x01, 0x05, 0x10, 0x11
LINK_STATUS = 0x12
MSI_64, MSI_MASKING = 1 << 7, 1 << 8
MAX_CAPABILITIES = 48


@dataclass(frozen=True)
class Description:
    """BARs and interrupts of a function.

    Attributes:
        bars: bytes of each BAR; 0 where there is none.
        msix: offset of the MSI-X capability; 0 where there is none.
        msix_vectors: how many.
        table, pba: BAR and offset of the MSI-X table and of the pending bits.
        msi: offset of the MSI capability; 0 where there is none.
        msi_vectors: how many it offers.
        msi_mask: offset of its mask bits; 0 where there are none.
        express: offset of the PCI Express capability; 0 where there is none.
        power: offset of the power management capability; 0 where there is none.
        link: speed and width of the link, as in the Link Status register; 0 where it is silent.
    """

    bars: tuple[int, ...]
    msix: int
    msix_vectors: int
    table: tuple[int, int]
    pba: tuple[int, int]
    msi: int
    msi_vectors: int
    msi_mask: int
    express: int
    power: int
    link: tuple[int, int]

    def pack(self, function: int) -> bytes:
        """As struct softcard_function_info."""
        return uapi.FUNCTION_INFO.pack(
            function, 0, *self.bars,
            self.msix_vectors, self.msix, self.table[0], self.pba[0], self.table[1], self.pba[1],
            self.msi_vectors, self.msi, self.msi_mask, self.express, self.power,
        )  # fmt: skip


def describe(function: Downstream, number: int) -> Description:
    """Look at a function that was just reset.

    Raises:
        PlugError: it has a BAR in I/O space, which the kernel module cannot serve.
    """
    found = _capabilities(function)
    msix, msi, express = (found.get(kind, 0) for kind in (MSIX, MSI, EXPRESS))
    vectors, table, pba = 0, (0, 0), (0, 0)
    if msix:
        vectors = (function.config_read(msix + 2, 2) & 0x7FF) + 1
        table, pba = (_place(function.config_read(msix + at, 4)) for at in (4, 8))
    offered, mask = 0, 0
    if msi:
        control = function.config_read(msi + 2, 2)
        offered = 1 << (control >> 1 & 7)
        if control & MSI_MASKING:
            mask = msi + (0x10 if control & MSI_64 else 0x0C)
    bars = _bar_sizes(function, number)
    link = function.config_read(express + LINK_STATUS, 2) if express else 0
    return Description(
        bars, msix, vectors, table, pba, msi, offered, mask,
        express, found.get(POWER_MANAGEMENT, 0), (link & 0xF, link >> 4 & 0x3F),
    )  # fmt: skip


def _place(word: int) -> tuple[int, int]:
    return word & 7, word & ~7


def _bar_sizes(function: Downstream, number: int) -> tuple[int, ...]:
    sizes = [0] * uapi.BARS
    bar = 0
    while bar < uapi.BARS:
        at = BAR_BASE + 4 * bar
        low = function.config_read(at, 4)
        if low & IO_SPACE:
            raise PlugError(
                f"BAR {bar} of function {number} is in I/O space, which the host bus cannot serve: "
                "plug the card into another bus"
            )
        wide = low & TYPE_64 != 0 and bar + 1 < uapi.BARS
        sizes[bar] = _size(function, at, wide)
        bar += 2 if wide else 1
    return tuple(sizes)


def _size(function: Downstream, at: int, wide: bool) -> int:
    places = (at, at + 4) if wide else (at,)
    before = [function.config_read(place, 4) for place in places]
    for place in places:
        function.config_write(place, 4, 0xFFFFFFFF)
    mask = sum(function.config_read(place, 4) << 32 * n for n, place in enumerate(places))
    for place, value in zip(places, before, strict=True):
        function.config_write(place, 4, value)
    mask &= MEMORY_MASK
    return mask & -mask


def _capabilities(function: Downstream) -> dict[int, int]:
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
