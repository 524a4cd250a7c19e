"""Vendor-specific capability (PCI Express Base 6.0, section 7.9.4)."""

from __future__ import annotations

from softcard.errors import DeclarationError
from softcard.pcie.capability import STANDARD_END, STANDARD_START, StandardCapability, checked_mask
from softcard.pcie.register import RO, Register

HEADER_SIZE = 3


class VendorSpecific(StandardCapability):
    """Bytes whose meaning only the card's vendor knows.

             31         24 23        16 15           8 7            0
            +-------------+------------+--------------+--------------+
        00h | data        | length     | next pointer | id (09h)     |
            +-------------+------------+--------------+--------------+
        04h | data                                                   |
            +--------------------------------------------------------+

    Args:
        data: what follows the length byte.
        writable: a mask for each byte of `data` of the bits that a driver may write; none when
            left out.
        at: offset in configuration space.
    """

    id = 0x09
    single = False
    length = Register(0x02, width=8, access=RO)

    def __init__(
        self, data: bytes, writable: bytes | None = None, *, at: int | None = None
    ) -> None:
        super().__init__(at=at)
        if HEADER_SIZE + len(data) > STANDARD_END - STANDARD_START:
            raise DeclarationError(
                f"vendor-specific data of {len(data)} bytes: at most "
                f"{STANDARD_END - STANDARD_START - HEADER_SIZE} fit"
            )
        self.data = bytes(data)
        self.writable = checked_mask(self.data, writable)

    @property
    def size(self) -> int:
        """Bytes that it takes in configuration space, its header included."""
        return HEADER_SIZE + len(self.data)

    def setup(self) -> None:
        """Store the length and the data."""
        self.length.value = self.size
        self._enter_bytes(HEADER_SIZE, self.data, self.writable)
