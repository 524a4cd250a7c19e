"""Device serial number (PCI Express Base 6.0, section 7.9.3)."""

from __future__ import annotations

from softcard.errors import DeclarationError
from softcard.pcie.capability import ExtendedCapability
from softcard.pcie.register import RO, Register


class DeviceSerialNumber(ExtendedCapability):
    """A number that no other device has.

             31              20 19   16 15             0
            +-----------------+-------+---------------+
        00h | next offset     |version| id (0003h)    |
            +-----------------+-------+---------------+
        04h | serial number, lower dword              |
        08h | serial number, upper dword              |
            +-----------------------------------------+

    Args:
        serial: 64 bits, an EUI-64.
        at: offset in configuration space.
    """

    id = 0x0003
    size = 12
    serial_low = Register(0x04, access=RO)
    serial_high = Register(0x08, access=RO)

    def __init__(self, serial: int, *, at: int | None = None) -> None:
        super().__init__(at=at)
        if not 0 <= serial < 1 << 64:
            raise DeclarationError(f"serial number {serial:#x} does not fit 64 bits")
        self.serial = serial

    def setup(self) -> None:
        """Store the number."""
        self.serial_low.value = self.serial & 0xFFFFFFFF
        self.serial_high.value = self.serial >> 32
