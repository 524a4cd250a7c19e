"""Vendor-specific extended capability (PCI Express Base 6.0, section 7.9.5)."""

from __future__ import annotations

from softcard.errors import DeclarationError
from softcard.pcie.capability import (
    EXTENDED_END,
    EXTENDED_START,
    ExtendedCapability,
    checked_mask,
)
from softcard.pcie.register import RO, Field, Register

HEADER_SIZE = 8


class VendorSpecificHeader(Register):
    """Vendor-specific header (section 7.9.5.2)."""

    vsec_id = Field(15, 0, access=RO)
    revision = Field(19, 16, access=RO)
    length = Field(31, 20, access=RO)


class VendorSpecificExtended(ExtendedCapability):
    """Bytes whose meaning only the card's vendor knows, with an id of the vendor's choice.

             31              20 19      16 15             0
            +-----------------+----------+---------------+
        00h | next offset     | version  | id (000Bh)    |
            +-----------------+----------+---------------+
        04h | length          | revision | VSEC id       |
            +-----------------+----------+---------------+
        08h | data                                       |
            +--------------------------------------------+

    Args:
        vsec_id: the vendor's own id, 16 bits.
        revision: revision of the vendor's layout, 4 bits.
        data: what follows the two headers.
        writable: a mask for each byte of `data` of the bits that a driver may write; none when
            left out.
        at: offset in configuration space.
    """

    id = 0x000B
    single = False
    vendor_header = VendorSpecificHeader(0x04)

    def __init__(
        self,
        vsec_id: int,
        revision: int,
        data: bytes,
        writable: bytes | None = None,
        *,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 0 <= vsec_id <= 0xFFFF or not 0 <= revision <= 0xF:
            raise DeclarationError(
                f"VSEC id {vsec_id:#x}, revision {revision}: they have 16 and 4 bits"
            )
        if HEADER_SIZE + len(data) > EXTENDED_END - EXTENDED_START:
            raise DeclarationError(
                f"VSEC data of {len(data)} bytes: at most "
                f"{EXTENDED_END - EXTENDED_START - HEADER_SIZE} fit"
            )
        self.vsec_id = vsec_id
        self.revision = revision
        self.data = bytes(data)
        self.writable = checked_mask(self.data, writable)

    @property
    def size(self) -> int:
        """Bytes that it takes in configuration space, its header included."""
        return HEADER_SIZE + len(self.data)

    def setup(self) -> None:
        """Store what it is, and the data."""
        self.vendor_header.vsec_id = self.vsec_id
        self.vendor_header.revision = self.revision
        self.vendor_header.length = self.size
        self._enter_bytes(HEADER_SIZE, self.data, self.writable)
