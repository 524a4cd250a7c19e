"""Base address registers' memory, as a card's author declares it."""

from __future__ import annotations

import copy
import fcntl
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

from softcard.errors import DeclarationError
from softcard.pcie.config import BarLayout
from softcard.pcie.register import mark_hook
from softcard.pcie.register_file import RegisterBlock, RegisterFile

ShadowHook = Callable[[Any, int, int, int], None]


class Memory:
    """Plain memory inside a BAR: reads give what was written, and no hook is called.

    A bus that can shares it with the driver's side, so that accesses make no call at all; it is
    shared only where `offset` and `size` are multiples of the page size.

    Args:
        offset: bytes from the start of the BAR.
        size: bytes.

    Attributes:
        view: the memory itself, on a card's instance.
    """

    def __init__(self, offset: int, size: int) -> None:
        if offset < 0 or size < 1:
            raise DeclarationError(f"memory of {size} bytes at offset {offset} is impossible")
        self.offset = offset
        self.size = size
        self.name = "memory"
        self.view = memoryview(b"")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def bind(self, file: memoryview) -> Self:
        """A copy that is a part of a BAR's own memory."""
        bound = copy.copy(self)
        bound.view = file[self.offset : self.offset + self.size]
        return bound

    def read(self, offset: int, size: int) -> int:
        """Up to 8 bytes."""
        return int.from_bytes(self.view[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store up to 8 bytes."""
        self.view[offset : offset + size] = value.to_bytes(size, "little")


class Shadow(Memory):
    """Memory that the card keeps up to date and the driver reads, without a call where the bus can.

    What the driver writes there is not stored: the card's method that `on_write` decorates gets it.
    For registers that are read far more often than the card changes them, and for those that are
    read where nobody can wait, as in an interrupt handler.

        class bar0(Bar, size=0x2000):
            status = Shadow(0x1000, 0x1000)

        @bar0.status.on_write
        def command(self, offset: int, size: int, value: int) -> None: ...

    Args:
        offset, size: see `Memory`.
    """

    def __init__(self, offset: int, size: int) -> None:
        super().__init__(offset, size)
        self.hook: Callable[[int, int, int], object] | None = None

    def on_write(self, method: ShadowHook) -> ShadowHook:
        """Decorates a card's method `(self, offset, size, value)`; `offset` is in the shadow."""
        return mark_hook(method, "write", self)

    def write(self, offset: int, size: int, value: int) -> None:
        """Up to 8 bytes for the card."""
        if self.hook is not None:
            self.hook(offset, size, value)


class Bar(RegisterBlock):
    """One BAR; a card declares it as a nested class named `bar0` to `bar5`.

        class bar0(Bar, size=0x4000, bits=64, prefetchable=True):
            control = Control(0x00)
            frames = Memory(0x1000, 0x1000)

    On the card's instance, `self.bar0.control` is that card's own register.

    Attributes:
        memories: the plain memory in it.
        memory_fd: the file that holds it, at the offsets that it has in the BAR; -1 where there is
            none.

    Args:
        size: bytes, a power of two of at least 16.
        bits: 32, or 64 for a BAR that takes two of the six places.
        prefetchable: reads have no side effects, so the bus may read ahead.
    """

    layout: BarLayout

    def __init_subclass__(
        cls, *, size: int | None = None, bits: int = 32, prefetchable: bool = False
    ) -> None:
        if size is not None:
            cls.layout = BarLayout(size, bits, prefetchable)

    def __init__(self) -> None:
        super().__init__(RegisterFile(self.layout.size))
        self.memories: list[Memory] = []
        self.memory_fd = -1
        declared = declared_memories(type(self))
        if declared:
            bound = self.add_memory(list(declared.values()))
            for name, memory in zip(declared, bound, strict=True):
                setattr(self, name, memory)

    def add_memory(self, declared: Sequence[Memory]) -> list[Memory]:
        """Enter plain memory that depends on a card's options into a BAR that declares none;
        returns the card's own.

        Raises:
            DeclarationError: it overlaps something else, or lies outside.
        """
        end = max(memory.offset + memory.size for memory in declared)
        self.memory_fd, file = _allocate(f"softcard-{type(self).__name__}", end)
        self.memories = [memory.bind(file) for memory in declared]
        for memory in self.memories:
            self.file.add_region(f"memory {memory.name}", memory.offset, memory.size, memory)
        return self.memories

    def __del__(self) -> None:
        if getattr(self, "memory_fd", -1) >= 0:
            os.close(self.memory_fd)


def declared_memories(bar: type[Bar]) -> dict[str, Memory]:
    """The memory that a BAR's class declares, by its name."""
    return {
        name: value
        for owner in reversed(bar.__mro__)
        for name, value in vars(owner).items()
        if isinstance(value, Memory)
    }


def _allocate(name: str, size: int) -> tuple[int, memoryview]:
    """A file in memory, zeroed, which nobody that it is given to can cut short."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd, memoryview(mmap.mmap(fd, size))
