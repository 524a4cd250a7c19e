"""Capabilities given as bytes, for those that have no class of their own."""

from __future__ import annotations

from softcard.errors import DeclarationError
from softcard.pcie.capability import ExtendedCapability, StandardCapability, checked_mask

STANDARD_HEADER_SIZE = 2
EXTENDED_HEADER_SIZE = 4


class RawCapability(StandardCapability):
    """Any capability of the first 256 bytes (PCI Express Base 6.0, section 7.9.1).

             15            8 7             0
            +--------------+---------------+
        00h | next pointer | id            |
            +--------------+---------------+
        02h | data                         |
            +------------------------------+

    Args:
        id: capability id, 8 bits.
        data: what follows the header.
        writable: a mask for each byte of `data` of the bits that a driver may write; none when
            left out.
        at: offset in configuration space.
    """

    single = False

    def __init__(
        self,
        id: int,  # noqa: A002
        data: bytes,
        writable: bytes | None = None,
        *,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 0 <= id <= 0xFF:
            raise DeclarationError(f"capability id {id:#x} does not fit 8 bits")
        self.id = id
        self.data = bytes(data)
        self.writable = checked_mask(self.data, writable)

    @property
    def size(self) -> int:
        """Bytes that it takes in configuration space, its header included."""
        return STANDARD_HEADER_SIZE + len(self.data)

    def setup(self) -> None:
        """Store the data."""
        self._enter_bytes(STANDARD_HEADER_SIZE, self.data, self.writable)


class RawExtendedCapability(ExtendedCapability):
    """Any extended capability (PCI Express Base 6.0, section 7.6.3).

             31              20 19   16 15             0
            +-----------------+-------+---------------+
        00h | next offset     |version| id            |
            +-----------------+-------+---------------+
        04h | data                                    |
            +-----------------------------------------+

    Args:
        id: capability id, 16 bits.
        version: version of its layout, 4 bits.
        data: what follows the header.
        writable: a mask for each byte of `data` of the bits that a driver may write; none when
            left out.
        at: offset in configuration space.
    """

    single = False

    def __init__(
        self,
        id: int,  # noqa: A002
        version: int,
        data: bytes,
        writable: bytes | None = None,
        *,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 0 <= id <= 0xFFFF or not 0 <= version <= 0xF:
            raise DeclarationError(
                f"extended capability id {id:#x}, version {version}: they have 16 and 4 bits"
            )
        self.id = id
        self.version = version
        self.data = bytes(data)
        self.writable = checked_mask(self.data, writable)

    @property
    def size(self) -> int:
        """Bytes that it takes in configuration space, its header included."""
        return EXTENDED_HEADER_SIZE + len(self.data)

    def setup(self) -> None:
        """Store the data."""
        self._enter_bytes(EXTENDED_HEADER_SIZE, self.data, self.writable)
