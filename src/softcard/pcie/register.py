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
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Generic, Literal, NoReturn, Protocol, Self, TypeVar, overload

from softcard.errors import DeclarationError

WIDTHS = (8, 16, 32, 64)
MAX_ACCESS = 8
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {8: "B", 16: "H", 32: "I", 64: "Q"}


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
        survives_flr: the value outlives a function level reset, but no other one.
    """

    def __init__(
        self,
        high: int,
        low: int | None = None,
        *,
        access: Access | None = None,
        reset: int = 0,
        sticky: bool = False,
        survives_flr: bool = False,
    ) -> None:
        self.high = high
        self.low = high if low is None else low
        if not 0 <= self.low <= self.high < max(WIDTHS):
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
        self.survives_flr = survives_flr
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
        return (register._view[0] & self.mask) >> self.low

    def __set__(self, register: Register, value: int) -> None:
        shifted = value << self.low
        if shifted & ~self.mask:
            raise ValueError(
                f"{value:#x} does not fit field {self.name} (bits {self.high}:{self.low})"
            )
        view = register._view
        view[0] = (view[0] & ~self.mask) | shifted


class _NoStorage:
    """What a register that is only declared has in place of storage."""

    def __init__(self, register: Register) -> None:
        self._register = register

    def __getitem__(self, index: int) -> int:
        self._refuse()

    def __setitem__(self, index: int, value: int) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DeclarationError(
            f"register {self._register.name} is only declared here; its value is on a card's "
            "instance"
        )


class Register:
    """One register, 8 to 64 bits wide; subclass it to give it fields.

    Declared in a `RegisterBlock`; the instance's copy is bound to the block's storage, where
    `value` and the fields read and write what the register holds, whatever its access kinds.

    A subclass whose bits follow a rule that no access kind expresses overrides `read` or `write`.

    Args:
        offset: bytes from the start of the block.
        width: bits: 8, 16, 32 or 64.
        access: for all bits, or for the fields that name none.
        reset: value after a reset; added to the reset values of the fields.
        sticky: all bits outlive every reset but power-on.

    Attributes:
        masks: the bits of each access kind; `set_access` changes them.
        sticky: the bits that outlive every reset but power-on.
        survives_flr: the bits that outlive a function level reset, but no other one.
    """

    fields: ClassVar[tuple[Field, ...]] = ()

    offset: int
    width: int
    access: Access
    size: int
    name: str
    reset: int
    masks: Mapping[Access, int]
    sticky: int
    survives_flr: int

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
        every_bit = (1 << width) - 1
        self.sticky = every_bit if sticky else 0
        self.survives_flr = 0
        masks = dict.fromkeys(Access, 0)
        for field in self.fields:
            if field.high >= width:
                raise DeclarationError(
                    f"field {field.name} ends at bit {field.high}, but the register has {width}"
                )
            self.reset |= field.reset << field.low
            masks[field.access or access] |= field.mask
            if field.sticky:
                self.sticky |= field.mask
            if field.survives_flr:
                self.survives_flr |= field.mask
        if not self.fields:
            masks[access] = every_bit
        if not 0 <= self.reset <= every_bit:
            raise DeclarationError(f"reset value {self.reset:#x} does not fit {width} bits")
        self._use(masks)
        self._view: memoryview | _NoStorage = _NoStorage(self)
        self._at = offset

    def __init_subclass__(cls) -> None:
        fields: dict[str, Field] = {}
        for owner in reversed(cls.__mro__):
            for name, value in vars(owner).items():
                if isinstance(value, Field):
                    fields[name] = value
                else:
                    fields.pop(name, None)
        taken = 0
        for name, field in fields.items():
            if hasattr(Register, name) or name in Register.__annotations__:
                raise DeclarationError(
                    f"field {name} of register {cls.__name__} has the name of something that every "
                    f"register has: call it {name}_"
                )
            if taken & field.mask:
                raise DeclarationError(
                    f"field {field.name} of register {cls.__name__} (bits {field.high}:"
                    f"{field.low}) overlaps another field"
                )
            taken |= field.mask
        cls.fields = tuple(sorted(fields.values(), key=lambda f: f.low))

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def set_access(self, bits: int, access: Access) -> None:
        """Give `bits` this access kind; the others keep theirs."""
        masks = {kind: mask & ~bits for kind, mask in self.masks.items()}
        masks[access] |= bits & ((1 << self.width) - 1)
        self._use(masks)

    def _use(self, masks: Mapping[Access, int]) -> None:
        # Hashing a member of an enumeration is a Python call, so accesses use plain integers.
        self.masks = masks
        self._replaced = masks[RW] | masks[WO]
        self._taken = self._replaced | masks[W1S]
        self._cleared_by_one = masks[W1C]
        self._cleared_by_read = masks[RC]
        self._readable = ~masks[WO]

    def bind(self, storage: bytearray | memoryview, base: int) -> Self:
        """A copy of this declaration whose value lives in `storage`, its block beginning at
        byte `base` there.

        Raises:
            DeclarationError: it lies outside.
        """
        at = base + self.offset
        if at + self.size > len(storage):
            raise DeclarationError(
                f"register {self.name} at {at:#x} to {at + self.size - 1:#x} does not fit "
                f"{len(storage):#x} bytes"
            )
        bound = copy.copy(self)
        bound._at = at
        # A cast view stores a whole register at once, where struct.pack_into would zero the bytes
        # first, which a reader on another thread or behind shared memory could see. It has the
        # host's byte order: every host that a bus runs on is little-endian.
        bound._view = memoryview(storage)[at : at + self.size].cast(_FORMATS[self.width])
        return bound

    @property
    def at(self) -> int:
        """Offset of this register from the start of the storage it is bound to."""
        return self._at

    @property
    def value(self) -> int:
        """What the register holds. The card may store any value, whatever the access kinds;
        neither hooks nor side effects happen."""
        return self._view[0]

    @value.setter
    def value(self, value: int) -> None:
        try:
            self._view[0] = value
        except ValueError:
            raise ValueError(
                f"{value:#x} does not fit register {self.name} of {self.width} bits"
            ) from None

    def read(self, mask: int = -1) -> int:
        """A driver's read of the register: side effects happen, hooks do not.

        Args:
            mask: the bits of the bytes that are read; the others have no side effects.
        """
        value = self._view[0]
        if clears := self._cleared_by_read & mask:
            self._view[0] = value & ~clears
        return value & self._readable

    def write(self, value: int, mask: int = -1) -> None:
        """A driver's write of the register, by the access kinds; no hook is called.

        Args:
            value: what is written.
            mask: the bits of the bytes that are written; the others stay as they are.
        """
        view = self._view
        value &= mask
        kept = view[0] & ~(self._replaced & mask | self._cleared_by_one & value)
        view[0] = kept | (value & self._taken)

    def restore(self, power_on: bool, function_level: bool = False) -> None:
        """Back to the reset value; sticky bits keep theirs unless power was lost.

        Args:
            power_on: power was lost.
            function_level: only the function is reset, not its link.
        """
        keep = 0 if power_on else self.sticky
        if function_level:
            keep |= self.survives_flr
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
        if isinstance(self._view, _NoStorage):
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
        self.name = element.name
        self._bound: list[R] = []
        if count < 1 or self.stride < element.size:
            raise DeclarationError(
                f"an array of {count} registers {self.stride} bytes apart: it needs at least one, "
                f"and a stride of at least {element.size}"
            )

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.element.name = name

    def bind(self, storage: bytearray | memoryview, base: int) -> Self:
        """A copy whose registers live in `storage`."""
        bound = copy.copy(self)
        bound._bound = []
        for index in range(self.count):
            register = self.element.bind(storage, base + index * self.stride)
            register.name = f"{self.name}[{index}]"
            register.offset += index * self.stride
            bound._bound.append(register)
        return bound

    def __getitem__(self, index: int) -> R:
        try:
            return self._bound[index]
        except IndexError:
            if self._bound:
                raise IndexError(
                    f"{self.name}[{index}] does not exist: there are {self.count}"
                ) from None
        raise DeclarationError(
            f"registers {self.name} are only declared here; their values are on a card's instance"
        )

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

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        # A large BAR costs memory only where it is written.
        self.storage: bytearray | memoryview = (
            bytearray(size) if size <= mmap.PAGESIZE else memoryview(mmap.mmap(-1, size))
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

    def _check_free(self, name: str, start: int, size: int) -> None:
        end = start + size
        if start < 0 or end > len(self.storage):
            raise DeclarationError(
                f"{name} at {start:#x} to {end - 1:#x} does not fit {len(self.storage):#x} bytes"
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


def _byte_mask(register: Register, offset: int, size: int) -> int:
    """The bits of `register` that an access of `size` bytes at `offset` touches."""
    first = max(offset - register.at, 0)
    last = min(offset + size - register.at, register.size)
    return ((1 << (8 * last)) - 1) & ~((1 << (8 * first)) - 1)
