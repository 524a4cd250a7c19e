"""What all capabilities have in common: a header, registers, and a place in configuration space."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

from softcard.errors import DeclarationError
from softcard.pcie.register import RO, RW, Field, Register, RegisterArray
from softcard.pcie.register_file import RegisterBlock, RegisterFile

STANDARD_START, STANDARD_END = 0x40, 0x100
EXTENDED_START, EXTENDED_END = 0x100, 0x1000


class StandardHeader(Register):
    """First word of a capability (PCI Local Bus 3.0, section 6.7).

    15            8 7             0
    +--------------+--------------+
    | next pointer | capability id|
    +--------------+--------------+
    """

    id = Field(7, 0, access=RO)
    next = Field(15, 8, access=RO)


class ExtendedHeader(Register):
    """First dword of an extended capability (PCI Express Base 6.0, section 7.6.3).

    31              20 19   16 15             0
    +-----------------+-------+---------------+
    | next offset     |version| capability id |
    +-----------------+-------+---------------+
    """

    id = Field(15, 0, access=RO)
    version = Field(19, 16, access=RO)
    next = Field(31, 20, access=RO)


class Capability(RegisterBlock):
    """A capability as a card declares it; `place` makes the one that lives in a function.

    Subclasses declare registers with offsets from the capability's own start, set `id` and
    `size`, and give values that depend on the declaration in `setup`, where they also enter
    registers that not every declaration has.

    Args:
        at: offset in configuration space; the first free one when left out.

    Attributes:
        id: capability id.
        single: a function has at most one of these.
        base: offset in configuration space, once it is placed.
    """

    id: int
    single: ClassVar[bool] = True
    alignment: ClassVar[int] = 4

    def __init__(self, *, at: int | None = None) -> None:
        self.at = at

    @property
    def size(self) -> int:
        """Bytes that it takes in configuration space, its header included."""
        raise NotImplementedError

    def place(self, file: RegisterFile, offset: int) -> Self:
        """A copy of this declaration whose registers live at `offset` of `file`."""
        placed = copy.copy(self)
        RegisterBlock.__init__(placed, file, offset)
        placed.identify()
        placed.setup()
        for register in file.registers:
            if offset <= register.at < offset + placed.size:
                register.reset = register.value
        return placed

    def identify(self) -> None:
        """Store in the header what this is."""
        raise NotImplementedError

    def setup(self) -> None:
        """Store what the declaration determines; the values become the reset values."""

    def restore(self) -> None:
        """A reset: initialise what this has beside its registers in configuration space."""

    def link_to(self, offset: int) -> None:
        """Store the offset of the next capability in the header."""
        raise NotImplementedError

    def _enter_bytes(self, offset: int, data: bytes, writable: bytes | None) -> None:
        """Enter registers of a byte each that hold `data`, the bits in `writable` read-write."""
        if not data:
            return
        declared = RegisterArray(Register(offset, width=8, access=RO), count=len(data))
        for register, value, bits in zip(
            self._enter(declared, type(self).__name__),
            data,
            writable or bytes(len(data)),
            strict=True,
        ):
            register.value = value
            register.set_access(bits, RW)


def checked_mask(data: bytes, writable: bytes | None) -> bytes | None:
    """`writable`, which must say for each byte of `data` which of its bits a driver may write.

    Raises:
        DeclarationError: it has another length.
    """
    if writable is not None and len(writable) != len(data):
        raise DeclarationError(
            f"a capability's data has {len(data)} bytes, its writable mask {len(writable)}: give "
            "a mask byte for each"
        )
    return writable


class StandardCapability(Capability):
    """A capability in the first 256 bytes, reached through the pointer at 0x34."""

    header = StandardHeader(0x00, width=16)

    def identify(self) -> None:
        """Store the capability id in the header."""
        self.header.id = self.id

    def link_to(self, offset: int) -> None:
        """Store the offset of the next capability in the header."""
        self.header.next = offset
        self.header.reset = self.header.value


class ExtendedCapability(Capability):
    """A capability from 0x100 on; the first one must be at 0x100.

    Attributes:
        version: version of the capability's layout, 4 bits.
    """

    version: int = 1
    header = ExtendedHeader(0x00)

    def identify(self) -> None:
        """Store the capability id and version in the header."""
        self.header.id = self.id
        self.header.version = self.version

    def link_to(self, offset: int) -> None:
        """Store the offset of the next capability in the header."""
        self.header.next = offset
        self.header.reset = self.header.value
