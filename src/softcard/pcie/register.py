"""Registers and fields, declared as in a data sheet.

A register is declared once, as an attribute of a `RegisterBlock` (a BAR, a capability, a
configuration header), and copied for every instance of that block, so that two cards of one class
share nothing:

    class Control(Register):
        \"\"\"Controller configuration.\"\"\"
        enable = Field(0)
        page_size = Field(10, 7)
        ready = Field(31, access=RO)

    class Registers(Bar, size=4096):
        control = Control(0x14)
        message = Register(0x18, width=64)

Bits that no field of a register with fields covers are reserved: they read as zero and ignore
writes. Numbers are little-endian; offsets are bytes from the start of the block.
"""

from __future__ import annotations

import copy
import enum
import mmap
import struct
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, overload

from softcard.errors import DeclarationError

WIDTHS = (8, 16, 32, 64)
_CODEC = {width: struct.Struct(code) for width, code in zip(WIDTHS, ("<B", "<H", "<I", "<Q"))}


class Access(enum.Enum):
    """What a driver's read and write do to a bit; the card itself may set every bit."""

    RO = "read-only"
    RW = "read-write"
    W1C = "write one to clear"
    W1S = "write one to set"
    RC = "cleared by reading"
    WO = "write-only, reads as zero"


RO, RW, W1C, W1S, RC, WO = Access


class Field:
    """Bits `high` down to `low` of a register; `Field(7)` is bit 7.

    Args:
        high: highest bit.
        low: lowest bit; the same as `high` when left out.
        access: what the driver may do; the register's own access when left out.
        reset: value after a reset, not shifted.
        sticky: the value outlives every reset but power-on (the specification's RWS, ROS, RW1CS).
    """

    def __init__(
        self,
        high: int,
        low: int | None = None,
        *,
        access: Access | None = None,
        reset: int = 0,
        sticky: bool = False,
    ) -> None:
        self.high = high
        self.low = high if low is None else low
        if not 0 <= self.low <= self.high < 64:
            raise DeclarationError(
                f"a field of bits {self.high}:{self.low} is impossible: give the higher bit first, "
                "both from 0 to 63"
            )
        self.mask = ((1 << (self.high - self.low + 1)) - 1) << self.low
        if reset & ~(self.mask >> self.low):
            raise DeclarationError(
                f"reset value {reset:#x} does not fit a field of bits {self.high}:{self.low}"
            )
        self.access = access
        self.reset = reset
        self.sticky = sticky
        self.name = "?"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, register: None, owner: type) -> Self: ...
    @overload
    def __get__(self, register: Register, owner: type) -> int: ...
    def __get__(self, register: Register | None, owner: type) -> Self | int:
        if register is None:
            return self
        return (register.value & self.mask) >> self.low

    def __set__(self, register: Register, value: int) -> None:
        shifted = value << self.low
        if shifted & ~self.mask:
            raise ValueError(
                f"{value:#x} does not fit field {self.name} (bits {self.high}:{self.low})"
            )
        register.value = (register.value & ~self.mask) | shifted


class Register:
    """One register, 8 to 64 bits wide; subclass it to give it fields.

    Declared in a `RegisterBlock`; the instance's copy is bound to the block's storage, where
    `value` and the fields read and write what the register holds, whatever its access kinds.

    Args:
        offset: bytes from the start of the block.
        width: bits: 8, 16, 32 or 64.
        access: for all bits, or for the fields that name none.
        reset: value after a reset; added to the reset values of the fields.
        sticky: all bits outlive every reset but power-on.
    """

    fields: ClassVar[tuple[Field, ...]] = ()

    def __init__(
        self,
        offset: int,
        *,
        width: int = 32,
        access: Access = RW,
        reset: int = 0,
        sticky: bool = False,
    ) -> None:
        if width not in WIDTHS:
            raise DeclarationError(f"a register of {width} bits: the width is 8, 16, 32 or 64")
        if offset < 0:
            raise DeclarationError(f"a register at offset {offset}: offsets are not negative")
        self.offset = offset
        self.width = width
        self.access = access
        self.size = width // 8
        self.name = type(self).__name__
        self.reset = reset
        self.masks = dict.fromkeys(Access, 0)
        self.sticky = (1 << width) - 1 if sticky else 0
        for field in self.fields:
            if field.high >= width:
                raise DeclarationError(
                    f"field {field.name} ends at bit {field.high}, but the register has {width}"
                )
            self.reset |= field.reset << field.low
            self.masks[field.access or access] |= field.mask
            if field.sticky:
                self.sticky |= field.mask
        if not self.fields:
            self.masks[access] = (1 << width) - 1
        if self.reset >> width:
            raise DeclarationError(f"reset value {self.reset:#x} does not fit {width} bits")
        self._codec = _CODEC[width]
        self._storage: bytearray | memoryview | None = None
        self._at = offset

    def __init_subclass__(cls) -> None:
        fields = [f for c in reversed(cls.__mro__) for f in vars(c).values() if _is_field(f)]
        taken = 0
        for field in fields:
            if taken & field.mask:
                raise DeclarationError(
                    f"field {field.name} of register {cls.__name__} (bits {field.high}:"
                    f"{field.low}) overlaps another field"
                )
            taken |= field.mask
        cls.fields = tuple(sorted(fields, key=lambda f: f.low))

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def bind(self, storage: bytearray | memoryview, base: int) -> Self:
        """A copy of this declaration whose value lives in `storage`, its block beginning at
        byte `base` there."""
        bound = copy.copy(self)
        bound.masks = dict(self.masks)
        bound._storage = storage
        bound._at = base + self.offset
        return bound

    @property
    def at(self) -> int:
        """Offset of this register from the start of the storage it is bound to."""
        return self._at

    @property
    def value(self) -> int:
        """What the register holds. The card may store any value, whatever the access kinds;
        neither hooks nor side effects happen."""
        if self._storage is None:
            raise DeclarationError(
                f"register {self.name} is only declared here; its value is on a card's instance"
            )
        value: int = self._codec.unpack_from(self._storage, self._at)[0]
        return value

    @value.setter
    def value(self, value: int) -> None:
        if self._storage is None:
            raise DeclarationError(
                f"register {self.name} is only declared here; its value is on a card's instance"
            )
        try:
            # A whole-slice store: pack_into would zero the bytes first, which a reader on
            # another thread or behind shared memory could see.
            self._storage[self._at : self._at + self.size] = self._codec.pack(value)
        except struct.error:
            raise ValueError(
                f"{value:#x} does not fit register {self.name} of {self.width} bits"
            ) from None

    def read(self) -> int:
        """A driver's read of the whole register: side effects happen, hooks do not."""
        value = self.value
        if clears := self.masks[RC]:
            self.value = value & ~clears
        return value & ~self.masks[WO]

    def write(self, value: int) -> None:
        """A driver's write of the whole register, by the access kinds; no hook is called."""
        masks = self.masks
        old = self.value
        plain = masks[RW] | masks[WO]
        new = (old & ~plain) | (value & plain)
        self.value = (new & ~(value & masks[W1C])) | (value & masks[W1S])

    def restore(self, power_on: bool) -> None:
        """Back to the reset value; sticky bits keep theirs unless power was lost."""
        keep = 0 if power_on else self.sticky
        self.value = (self.reset & ~keep) | (self.value & keep)

    def on_read(self, method: Callable[[Any], int]) -> Callable[[Any], int]:
        """Decorates a card's method `(self) -> int`: its result is what the driver reads."""
        return _mark(method, "read", self)

    def on_write(self, method: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        """Decorates a card's method `(self, value)`, called after the register was updated.

        `value` is what the driver wrote. Where it wrote only some bytes of the register, the
        others are what the register held (read-write bits) or zero.
        """
        return _mark(method, "write", self)

    def __repr__(self) -> str:
        if self._storage is None:
            return f"<register {self.name} at {self.offset:#x}, {self.width} bits>"
        value = self.value
        parts = " ".join(f"{f.name}={(value & f.mask) >> f.low:#x}" for f in self.fields)
        return f"{self.name}={value:#0{self.width // 4 + 2}x}" + (f" ({parts})" if parts else "")


R = TypeVar("R", bound=Register)


class RegisterArray(Generic[R]):
    """`count` registers alike, `stride` bytes apart, from the offset of `element`.

        doorbells = RegisterArray(Register(0x1000, access=WO), count=128, stride=4)

    Hooks get the index before the value: `(self, index)` and `(self, index, value)`.
    """

    def __init__(self, element: R, *, count: int, stride: int | None = None) -> None:
        self.element = element
        self.count = count
        self.stride = element.size if stride is None else stride
        self.name = "?"
        self._bound: list[R] = []
        if count < 1 or self.stride < element.size:
            raise DeclarationError(
                f"an array of {count} registers {self.stride} bytes apart: it needs at least one, "
                f"and a stride of at least {element.size}"
            )

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.element.name = name

    def bind(self, storage: bytearray | memoryview, base: int) -> RegisterArray[R]:
        """A copy whose registers live in `storage`."""
        bound = copy.copy(self)
        bound._bound = [
            self.element.bind(storage, base + index * self.stride) for index in range(self.count)
        ]
        for index, register in enumerate(bound._bound):
            register.name = f"{self.name}[{index}]"
        return bound

    def __getitem__(self, index: int) -> R:
        return self._bound[index]

    def __iter__(self) -> Iterator[R]:
        return iter(self._bound)

    def __len__(self) -> int:
        return self.count

    def on_read(self, method: Callable[[Any, int], int]) -> Callable[[Any, int], int]:
        """Decorates a card's method `(self, index) -> int`."""
        return _mark(method, "read", self)

    def on_write(self, method: Callable[[Any, int, int], None]) -> Callable[[Any, int, int], None]:
        """Decorates a card's method `(self, index, value)`."""
        return _mark(method, "write", self)


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
    """

    def __init__(self, size: int) -> None:
        # A large BAR costs memory only where it is written.
        self.storage: bytearray | memoryview = (
            bytearray(size) if size <= mmap.PAGESIZE else memoryview(mmap.mmap(-1, size))
        )
        self._registers: dict[int, Register] = {}
        self._starts: list[int] = []
        self._regions: list[tuple[int, int, Region]] = []
        self._read_hooks: dict[int, Callable[[], int]] = {}
        self._write_hooks: dict[int, Callable[[int], None]] = {}

    @property
    def registers(self) -> list[Register]:
        """Every register, in the order of offsets."""
        return [self._registers[start] for start in self._starts]

    def add(self, register: Register) -> None:
        """Enter a register bound to this file's storage, holding its reset value.

        Raises:
            DeclarationError: it overlaps another register or region, or lies outside.
        """
        start = register.at
        self._check_free(f"register {register.name}", start, register.size)
        self._registers[start] = register
        insort(self._starts, start)
        register.value = register.reset

    def add_region(self, name: str, start: int, size: int, region: Region) -> None:
        """Let `region` answer `size` bytes from `start`.

        Raises:
            DeclarationError: they overlap a register or region, or lie outside.
        """
        self._check_free(name, start, size)
        self._regions.append((start, start + size, region))

    def _check_free(self, name: str, start: int, size: int) -> None:
        end = start + size
        if end > len(self.storage):
            raise DeclarationError(
                f"{name} at {start:#x} to {end - 1:#x} does not fit {len(self.storage):#x} bytes"
            )
        for other_start, other_end, region in self._regions:
            if start < other_end and other_start < end:
                raise DeclarationError(
                    f"{name} at {start:#x} overlaps {type(region).__name__} at {other_start:#x}"
                )
        for other in self._overlapping(start, end):
            raise DeclarationError(
                f"{name} at {start:#x} overlaps register {other.name} at {other.at:#x}: "
                "give one of them another offset"
            )

    def _overlapping(self, start: int, end: int) -> list[Register]:
        index = bisect_right(self._starts, start - 1)
        while index and self._ends_after(index - 1, start):
            index -= 1
        found = []
        while index < len(self._starts) and self._starts[index] < end:
            found.append(self._registers[self._starts[index]])
            index += 1
        return found

    def _ends_after(self, index: int, start: int) -> bool:
        register = self._registers[self._starts[index]]
        return register.at + register.size > start

    def hook_read(self, register: Register, hook: Callable[[], int]) -> None:
        """Answer reads of `register` with `hook()`."""
        self._read_hooks[register.at] = hook

    def hook_write(self, register: Register, hook: Callable[[int], None]) -> None:
        """Call `hook(value)` after each write of `register`."""
        self._write_hooks[register.at] = hook

    def hooked(self, start: int, end: int) -> bool:
        """Whether an access between `start` and `end` could call a hook or a region."""
        return any(s < end and start < e for s, e, _ in self._regions) or any(
            r.at in self._read_hooks or r.at in self._write_hooks
            for r in self._overlapping(start, end)
        )

    def name_at(self, offset: int) -> str:
        """The name of the register or region at `offset`, for messages; empty when none is."""
        for register in self._overlapping(offset, offset + 1):
            return register.name
        for start, end, region in self._regions:
            if start <= offset < end:
                return type(region).__name__
        return ""

    def read(self, offset: int, size: int) -> int:
        """A driver's read of 1 to 8 bytes."""
        register = self._registers.get(offset)
        if register is not None and register.size == size:
            hook = self._read_hooks.get(offset)
            return hook() if hook is not None else register.read()
        for start, end, region in self._regions:
            if offset < end and start < offset + size:
                return self._read_with_region(offset, size, start, end, region)
        return self._read_parts(offset, size)

    def _read_with_region(
        self, offset: int, size: int, start: int, end: int, region: Region
    ) -> int:
        if start <= offset and offset + size <= end:
            return region.read(offset - start, size)
        return sum(self.read(offset + i, 1) << (8 * i) for i in range(size))

    def _read_parts(self, offset: int, size: int) -> int:
        result = 0
        for register in self._overlapping(offset, offset + size):
            hook = self._read_hooks.get(register.at)
            if hook is not None:
                value = hook()
            elif register.at >= offset and register.at + register.size <= offset + size:
                value = register.read()
            else:
                value = self._read_some_bytes(register, offset, size)
            shift = 8 * (register.at - offset)
            result |= value << shift if shift >= 0 else value >> -shift
        return result & ((1 << (8 * size)) - 1)

    @staticmethod
    def _read_some_bytes(register: Register, offset: int, size: int) -> int:
        """Only the bytes that are read may be cleared by reading."""
        touched = _byte_mask(register, offset, size)
        value = register.value
        if clears := register.masks[RC] & touched:
            register.value = value & ~clears
        return value & ~register.masks[WO]

    def write(self, offset: int, size: int, value: int) -> None:
        """A driver's write of 1 to 8 bytes."""
        register = self._registers.get(offset)
        if register is not None and register.size == size:
            register.write(value)
            hook = self._write_hooks.get(offset)
            if hook is not None:
                hook(value)
            return
        for start, end, region in self._regions:
            if offset < end and start < offset + size:
                self._write_with_region(offset, size, value, start, end, region)
                return
        self._write_parts(offset, size, value)

    def _write_with_region(
        self, offset: int, size: int, value: int, start: int, end: int, region: Region
    ) -> None:
        if start <= offset and offset + size <= end:
            region.write(offset - start, size, value)
            return
        for i in range(size):
            self.write(offset + i, 1, (value >> (8 * i)) & 0xFF)

    def _write_parts(self, offset: int, size: int, value: int) -> None:
        for register in self._overlapping(offset, offset + size):
            touched = _byte_mask(register, offset, size)
            shift = 8 * (register.at - offset)
            part = (value >> shift if shift >= 0 else value << -shift) & touched
            part |= register.value & register.masks[RW] & ~touched
            register.write(part)
            hook = self._write_hooks.get(register.at)
            if hook is not None:
                hook(part)

    def restore(self, power_on: bool) -> None:
        """Every register back to its reset value."""
        for register in self._registers.values():
            register.restore(power_on)


AnyRegister = TypeVar("AnyRegister", Register, RegisterArray[Any])


class RegisterBlock:
    """Registers that belong together; subclasses declare them as class attributes.

    Making an instance copies each declared register and enters it into `file` at `base`.
    """

    def __init__(self, file: RegisterFile, base: int = 0) -> None:
        self.file = file
        self.base = base
        for name, declared in declared_registers(type(self)).items():
            setattr(self, name, self._enter(declared))

    def _enter(self, declared: AnyRegister) -> AnyRegister:
        """The copy of `declared` that is bound to this block, entered into its file."""
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


def hooks_of(method: object) -> list[tuple[str, Register | RegisterArray[Register]]]:
    """The `("read" or "write", register)` pairs that a method was decorated with."""
    found: list[tuple[str, Register | RegisterArray[Register]]] = getattr(
        method, "__register_hooks__", []
    )
    return found


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _mark(method: _Method, kind: str, register: object) -> _Method:
    # The mark stays on the method, not on the register: a subclass of a card may hook a register
    # that it inherits without changing its parent.
    marks = getattr(method, "__register_hooks__", [])
    method.__register_hooks__ = [*marks, (kind, register)]  # type: ignore[attr-defined]
    return method


def _is_field(value: object) -> bool:
    return isinstance(value, Field)


def _byte_mask(register: Register, offset: int, size: int) -> int:
    """The bits of `register` that an access of `size` bytes at `offset` touches."""
    first = max(offset - register.at, 0)
    last = min(offset + size - register.at, register.size)
    return ((1 << (8 * last)) - 1) & ~((1 << (8 * first)) - 1)
