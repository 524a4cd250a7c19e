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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, NoReturn, Self, TypeVar, overload

from softcard.errors import DeclarationError

WIDTHS = (8, 16, 32, 64)
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
        return mark_hook(method, "read", self)

    def on_write(self, method: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        """Decorates a card's method `(self, value)`, called after the register was updated.

        `value` is what the driver wrote. Where it wrote only some bytes of the register, the
        others are what the register held (read-write bits) or zero.
        """
        return mark_hook(method, "write", self)

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
        return mark_hook(method, "read", self)

    def on_write(self, method: Callable[[Any, int, int], None]) -> Callable[[Any, int, int], None]:
        """Decorates a card's method `(self, index, value)`."""
        return mark_hook(method, "write", self)


def hooks_of(method: object) -> list[tuple[str, Register | RegisterArray[Register]]]:
    """The `("read" or "write", register)` pairs that a method was decorated with."""
    found: list[tuple[str, Register | RegisterArray[Register]]] = getattr(
        method, "__register_hooks__", []
    )
    return found


_Method = TypeVar("_Method", bound=Callable[..., Any])


def mark_hook(method: _Method, kind: str, register: object) -> _Method:
    """Note on a method what it is called for; see `hooks_of`."""
    # The mark stays on the method, not on the register: a subclass of a card may hook a register
    # that it inherits without changing its parent.
    marks = getattr(method, "__register_hooks__", [])
    method.__register_hooks__ = [*marks, (kind, register)]  # type: ignore[attr-defined]
    return method
