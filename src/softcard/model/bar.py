"""Base address registers' memory, as a card's author declares it."""

from __future__ import annotations

import copy
import mmap
import os
from typing import ClassVar, Self

from softcard.errors import DeclarationError
from softcard.pcie.config import BarLayout
from softcard.pcie.register_file import RegisterBlock, RegisterFile


class Memory:
    """Plain memory inside a BAR: reads give what was written, and no hook is called.

    A bus that can shares it with the driver's side, so that accesses make no call at all; it is
    shared only where `offset` and `size` are multiples of the page size.

    Args:
        offset: bytes from the start of the BAR.
        size: bytes.

    Attributes:
        view: the memory itself, on a card's instance.
        fd: the file that holds it, from its first byte.
    """

    def __init__(self, offset: int, size: int) -> None:
        if offset < 0 or size < 1:
            raise DeclarationError(f"memory of {size} bytes at offset {offset} is impossible")
        self.offset = offset
        self.size = size
        self.name = "memory"
        self.fd = -1
        self.view = memoryview(b"")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def allocate(self) -> Self:
        """A copy with memory of its own, zeroed."""
        bound = copy.copy(self)
        bound.fd = os.memfd_create(f"softcard-{self.name}", os.MFD_CLOEXEC)
        os.ftruncate(bound.fd, self.size)
        bound.view = memoryview(mmap.mmap(bound.fd, self.size))
        return bound

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read(self, offset: int, size: int) -> int:
        """Up to 8 bytes."""
        return int.from_bytes(self.view[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store up to 8 bytes."""
        self.view[offset : offset + size] = value.to_bytes(size, "little")


class Bar(RegisterBlock):
    """One BAR; a card declares it as a nested class named `bar0` to `bar5`.

        class bar0(Bar, size=0x4000, bits=64, prefetchable=True):
            control = Control(0x00)
            frames = Memory(0x1000, 0x1000)

    On the card's instance, `self.bar0.control` is that card's own register.

    Args:
        size: bytes, a power of two of at least 16.
        bits: 32, or 64 for a BAR that takes two of the six places.
        prefetchable: reads have no side effects, so the bus may read ahead.
    """

    layout: ClassVar[BarLayout]

    def __init_subclass__(
        cls, *, size: int | None = None, bits: int = 32, prefetchable: bool = False
    ) -> None:
        if size is not None:
            cls.layout = BarLayout(size, bits, prefetchable)

    def __init__(self) -> None:
        super().__init__(RegisterFile(self.layout.size))
        self.memories: list[Memory] = []
        for owner in reversed(type(self).__mro__):
            for name, declared in vars(owner).items():
                if isinstance(declared, Memory):
                    memory = declared.allocate()
                    self.file.add_region(f"memory {name}", memory.offset, memory.size, memory)
                    self.memories.append(memory)
                    setattr(self, name, memory)
