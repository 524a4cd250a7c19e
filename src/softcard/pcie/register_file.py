"""Where registers live: their storage, the dispatch of a driver's accesses to it, and blocks of
registers that belong together."""

from __future__ import annotations

import mmap
from bisect import bisect_right, insort
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol, TypeVar, overload

from softcard.errors import DeclarationError
from softcard.pcie.register import RW, Register, RegisterArray

MAX_ACCESS = 8
# Python 3.13 is the first to know it: a BAR may be larger than all memory.
MAP_NORESERVE = 0x4000
SPARSE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE

R = TypeVar("R", bound=Register)


class Region(Protocol):
    """Bytes of a register file that something other than registers answers."""

    def read(self, offset: int, size: int) -> int:
        """Up to 8 bytes at `offset` of the region."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Store up to 8 bytes."""


class RegisterFile:
    """The storage of a block's registers, and the dispatch of accesses to it.

    Accesses of any size from 1 to 8 bytes and any alignment are defined: each register that an
    access touches is read or written once, in the order of offsets; bytes that belong to no
    register read as zero and ignore writes.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        # A large BAR costs memory only where it is written.
        self.storage: bytearray | memoryview = (
            bytearray(size) if size <= mmap.PAGESIZE else memoryview(mmap.mmap(-1, size, SPARSE))
        )
        self._registers: dict[int, Register] = {}
        self._starts: list[int] = []
        self._regions: list[tuple[int, int, str, Region]] = []
        self._read_hooks: dict[int, Callable[[], int]] = {}
        self._write_hooks: dict[int, Callable[[int], object]] = {}
        # What answers an access of a whole register, by the size and offset of the access.
        self._readers: list[dict[int, Callable[[], int]]] = [{} for _ in range(MAX_ACCESS + 1)]
        self._writers: list[dict[int, Callable[[int], object]]] = [
            {} for _ in range(MAX_ACCESS + 1)
        ]

    @property
    def registers(self) -> list[Register]:
        """Every register, in the order of offsets."""
        return [self._registers[start] for start in self._starts]

    @property
    def occupied(self) -> list[tuple[int, int]]:
        """`(start, end)` of every register and region, in the order of offsets."""
        return sorted(
            [(r.at, r.at + r.size) for r in self._registers.values()]
            + [(start, end) for start, end, _, _ in self._regions]
        )

    def add(self, register: Register) -> None:
        """Enter a register bound to this file's storage, holding its reset value.

        Raises:
            DeclarationError: it overlaps another register or region, or lies outside.
        """
        start = register.at
        self._check_free(f"register {register.name}", start, register.size)
        self._registers[start] = register
        insort(self._starts, start)
        self._readers[register.size][start] = register.read
        self._writers[register.size][start] = register.write
        register.value = register.reset

    def add_region(self, name: str, start: int, size: int, region: Region) -> None:
        """Let `region` answer `size` bytes from `start`.

        Raises:
            DeclarationError: they overlap a register or region, or lie outside.
        """
        self._check_free(name, start, size)
        self._regions.append((start, start + size, name, region))

    def answer_writes(self, offset: int, size: int, call: Callable[[int], object]) -> None:
        """Let `call(value)` take writes of just this size and place, which a region would take
        otherwise: the short way for the few places that are written all the time."""
        self._writers[size][offset] = call

    def _check_free(self, name: str, start: int, size: int) -> None:
        end = start + size
        if start < 0 or end > self.size:
            raise DeclarationError(
                f"{name} at {start:#x} to {end - 1:#x} does not fit {self.size:#x} bytes"
            )
        taken = [(f"register {r.name}", r.at) for r in self._overlapping(start, end)]
        taken += [(n, s) for s, e, n, _ in self._regions if start < e and s < end]
        for other, at in taken:
            raise DeclarationError(
                f"{name} at {start:#x} overlaps {other} at {at:#x}: give one of them another offset"
            )

    def _overlapping(self, start: int, end: int) -> list[Register]:
        starts, registers = self._starts, self._registers
        index = bisect_right(starts, start)
        if index:
            before = registers[starts[index - 1]]
            if before._at + before.size > start:
                index -= 1
        found = []
        while index < len(starts) and starts[index] < end:
            found.append(registers[starts[index]])
            index += 1
        return found

    def hook_read(self, register: Register, hook: Callable[[], int]) -> None:
        """Answer reads of `register` with `hook()`.

        Raises:
            DeclarationError: another hook answers them already.
        """
        self._check_own(register)
        at = register.at
        if at in self._read_hooks:
            raise DeclarationError(
                f"register {register.name} has two read hooks: only one of them can answer"
            )
        limit = (1 << register.width) - 1

        def checked() -> int:
            value = hook()
            try:
                if 0 <= value <= limit:
                    return value
            except TypeError:
                pass
            raise ValueError(
                f"the read hook of register {register.name} returned {value!r}: it must return an "
                f"integer from 0 to {limit:#x}"
            )

        self._read_hooks[at] = self._readers[register.size][at] = checked

    def hook_write(self, register: Register, hook: Callable[[int], object]) -> None:
        """Call `hook(value)` after each write of `register`, after the hooks that it has."""
        self._check_own(register)
        at = register.at
        call = hook
        if (earlier := self._write_hooks.get(at)) is not None:

            def call(value: int) -> None:
                earlier(value)
                hook(value)

        write = register.write

        def write_and_call(value: int) -> None:
            write(value)
            call(value)

        self._write_hooks[at] = call
        self._writers[register.size][at] = write_and_call

    def _check_own(self, register: Register) -> None:
        if self._registers.get(register.at) is not register:
            raise DeclarationError(f"register {register.name} is not one of these registers")

    def hooked(self, start: int, end: int) -> bool:
        """Whether an access between `start` and `end` could call a hook or a region."""
        return any(s < end and start < e for s, e, _, _ in self._regions) or any(
            r.at in self._read_hooks or r.at in self._write_hooks
            for r in self._overlapping(start, end)
        )

    def name_at(self, offset: int) -> str:
        """The name of the register or region at `offset`, for messages; empty when none is."""
        for register in self._overlapping(offset, offset + 1):
            return register.name
        for start, end, name, _ in self._regions:
            if start <= offset < end:
                return name
        return ""

    def read(self, offset: int, size: int) -> int:
        """A driver's read of 1 to 8 bytes."""
        reader = self._readers[size].get(offset)
        if reader is not None:
            return reader()
        return self._read_parts(offset, size)

    def _read_parts(self, offset: int, size: int) -> int:
        end = offset + size
        for start, stop, _, region in self._regions:
            if offset < stop and start < end:
                if start <= offset and end <= stop:
                    return region.read(offset - start, size)
                cuts = [offset, *(cut for cut in (start, stop) if offset < cut < end), end]
                return sum(self.read(a, b - a) << (8 * (a - offset)) for a, b in pairwise(cuts))
        result = 0
        for register in self._overlapping(offset, end):
            at = register._at
            hook = self._read_hooks.get(at)
            if hook is not None:
                value = hook()
            else:
                value = register.read(_byte_mask(register, offset, size))
            result |= value << 8 * (at - offset) if at >= offset else value >> 8 * (offset - at)
        return result & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """A driver's write of 1 to 8 bytes."""
        writer = self._writers[size].get(offset)
        if writer is not None:
            writer(value)
        else:
            self._write_parts(offset, size, value)

    def _write_parts(self, offset: int, size: int, value: int) -> None:
        end = offset + size
        for start, stop, _, region in self._regions:
            if offset < stop and start < end:
                if start <= offset and end <= stop:
                    region.write(offset - start, size, value)
                    return
                cuts = [offset, *(cut for cut in (start, stop) if offset < cut < end), end]
                for a, b in pairwise(cuts):
                    self.write(a, b - a, (value >> 8 * (a - offset)) & ((1 << 8 * (b - a)) - 1))
                return
        for register in self._overlapping(offset, end):
            at = register._at
            mask = _byte_mask(register, offset, size)
            part = value >> 8 * (at - offset) if at >= offset else value << 8 * (offset - at)
            part &= mask
            register.write(part, mask)
            hook = self._write_hooks.get(at)
            if hook is not None:
                hook(part | (register.value & register.masks[RW] & ~mask))

    def restore(self, power_on: bool, function_level: bool = False) -> None:
        """Every register back to its reset value; see `Register.restore`."""
        for register in self._registers.values():
            register.restore(power_on, function_level)


class RegisterBlock:
    """Registers that belong together; subclasses declare them as class attributes.

    Making an instance copies each declared register and enters it into `file` at `base`.
    """

    def __init__(self, file: RegisterFile, base: int = 0) -> None:
        self.file = file
        self.base = base
        for name, declared in declared_registers(type(self)).items():
            if name in vars(self):
                raise DeclarationError(
                    f"register {name} has the name of something that every "
                    f"{type(self).__name__} has: call it {name}_"
                )
            setattr(self, name, self._enter(declared))

    @overload
    def _enter(self, declared: R, name: str = "") -> R: ...
    @overload
    def _enter(self, declared: RegisterArray[R], name: str = "") -> RegisterArray[R]: ...
    def _enter(
        self, declared: Register | RegisterArray[Any], name: str = ""
    ) -> Register | RegisterArray[Any]:
        """The copy of `declared` that is bound to this block, entered into its file.

        A block whose registers depend on options enters them itself, with the `name` that
        messages show.
        """
        if name:
            declared.name = name
        bound = declared.bind(self.file.storage, self.base)
        for register in bound if isinstance(bound, RegisterArray) else (bound,):
            self.file.add(register)
        return bound


def declared_registers(block: type) -> dict[str, Register | RegisterArray[Register]]:
    """Name and declaration of every register of a block class, base classes first."""
    found: dict[str, Register | RegisterArray[Register]] = {}
    for owner in reversed(block.__mro__):
        for name, value in vars(owner).items():
            if isinstance(value, Register | RegisterArray):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def _byte_mask(register: Register, offset: int, size: int) -> int:
    """The bits of `register` that an access of `size` bytes at `offset` touches."""
    first = max(offset - register.at, 0)
    last = min(offset + size - register.at, register.size)
    return ((1 << (8 * last)) - 1) & ~((1 << (8 * first)) - 1)
