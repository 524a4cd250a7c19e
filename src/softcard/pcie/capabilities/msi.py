"""Message signalled interrupts (PCI Express Base 6.0, section 7.7.1)."""

from __future__ import annotations

from softcard.errors import DeclarationError
from softcard.pcie.capability import StandardCapability
from softcard.pcie.register import RO, RW, Field, Register

MAX_VECTORS = 32


class MsiControl(Register):
    """Message control (section 7.7.1.2)."""

    enable = Field(0)
    multiple_message_capable = Field(3, 1, access=RO)
    multiple_message_enable = Field(6, 4)
    address_64 = Field(7, access=RO)
    per_vector_masking = Field(8, access=RO)


class MessageAddress(Register):
    """Message address (section 7.7.1.3); its two lowest bits are zero."""

    address = Field(31, 2)


class Msi(StandardCapability):
    """One to 32 vectors, one message address for all of them.

             31            16 15           8 7            0
            +----------------+--------------+--------------+
        00h | control        | next pointer | id (05h)     |
            +----------------+--------------+--------------+
        04h | message address                              |
            +----------------------------------------------+
            | message upper address (64-bit only)          |
            +----------------+-----------------------------+
            | reserved       | message data                |
            +----------------+-----------------------------+
            | mask bits (per-vector masking only)          |
            +----------------------------------------------+
            | pending bits (per-vector masking only)       |
            +----------------------------------------------+

    Args:
        vectors: a power of two from 1 to 32.
        address64: messages may go above 4 GiB.
        masking: each vector has a mask and a pending bit.
        at: offset in configuration space.

    Attributes:
        address_high: None without `address64`.
        mask, pending: a bit for each vector; None without `masking`.
    """

    id = 0x05
    control = MsiControl(0x02, width=16)
    address_low = MessageAddress(0x04)
    address_high: Register | None
    data: Register
    mask: Register | None
    pending: Register | None

    def __init__(
        self,
        *,
        vectors: int = 1,
        address64: bool = True,
        masking: bool = True,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if vectors & (vectors - 1) or not 1 <= vectors <= MAX_VECTORS:
            raise DeclarationError(
                f"{vectors} MSI vectors: the number is a power of two from 1 to {MAX_VECTORS}"
            )
        self.vectors = vectors
        self.address64 = address64
        self.masking = masking

    @property
    def size(self) -> int:
        """Bytes that it takes in configuration space, its header included."""
        return self._data_offset + (0x0C if self.masking else 0x02)

    @property
    def _data_offset(self) -> int:
        return 0x0C if self.address64 else 0x08

    def setup(self) -> None:
        """Enter the registers that the options ask for."""
        self.control.multiple_message_capable = self.vectors.bit_length() - 1
        self.control.address_64 = self.address64
        self.control.per_vector_masking = self.masking
        data = self._data_offset
        self.address_high = self._enter(Register(0x08), "address_high") if self.address64 else None
        self.data = self._enter(Register(data, width=16), "data")
        self.mask = self.pending = None
        if self.masking:
            self.mask = self._enter(Register(data + 0x04, access=RO), "mask")
            self.mask.set_access((1 << self.vectors) - 1, RW)
            self.pending = self._enter(Register(data + 0x08, access=RO), "pending")

    @property
    def allocated(self) -> int:
        """The number of vectors that the driver's side has granted."""
        return min(1 << self.control.multiple_message_enable, self.vectors)

    def message(self, vector: int) -> tuple[int, int]:
        """Address and data of the message that signals `vector`, which is below `allocated`."""
        address = self.address_low.value
        if self.address_high is not None:
            address |= self.address_high.value << 32
        return address, self.data.value & ~(self.allocated - 1) | vector
