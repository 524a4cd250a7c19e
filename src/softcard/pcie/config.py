"""A function's configuration space: the type 0 header and the capabilities placed behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from softcard.errors import DeclarationError
from softcard.pcie.capability import (
    EXTENDED_END,
    EXTENDED_START,
    STANDARD_END,
    STANDARD_START,
    Capability,
    ExtendedCapability,
)
from softcard.pcie.register import RO, RW, W1C, Field, Register
from softcard.pcie.register_file import RegisterBlock, RegisterFile

CONFIG_SIZE = 4096
PCI_EXPRESS_ID = 0x10
BAR_COUNT = 6
MIN_BAR_SIZE = 16
MAX_BAR_SIZE_32 = 1 << 31
MAX_BAR_SIZE_64 = 1 << 62


@dataclass(frozen=True)
class Identity:
    """What a function is (PCI Express Base 6.0, section 7.5.1.1 and 7.5.1.2).

    Attributes:
        vendor_id, device_id: 16 bits each.
        revision_id: 8 bits.
        class_code: 24 bits: base class, sub-class, programming interface.
        subsystem_vendor_id, subsystem_id: 16 bits each.
        interrupt_pin: 0 for none, 1 to 4 for INTA to INTD.
    """

    vendor_id: int
    device_id: int
    revision_id: int = 0
    class_code: int = 0xFF0000
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0
    interrupt_pin: int = 0

    def __post_init__(self) -> None:
        # A vendor id of all-zeros or all-ones is what software takes for an empty slot.
        limits = {
            "vendor_id": (1, 0xFFFE), "device_id": (0, 0xFFFF), "revision_id": (0, 0xFF),
            "class_code": (0, 0xFFFFFF), "subsystem_vendor_id": (0, 0xFFFF),
            "subsystem_id": (0, 0xFFFF), "interrupt_pin": (0, 4),
        }  # fmt: skip
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise DeclarationError(
                    f"{name} {value:#x} is out of range: {least:#x} to {most:#x}"
                )


@dataclass(frozen=True)
class BarLayout:
    """A base address register's shape: `size` in bytes, a power of two."""

    size: int
    bits: int = 32
    prefetchable: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise DeclarationError(f"a BAR of {self.bits} bits: it has 32 or 64")
        largest = MAX_BAR_SIZE_32 if self.bits == 32 else MAX_BAR_SIZE_64
        if self.size & (self.size - 1) or not MIN_BAR_SIZE <= self.size <= largest:
            above = 1 << max(self.size - 1, MIN_BAR_SIZE - 1).bit_length()
            raise DeclarationError(
                f"a BAR of {self.size} bytes is impossible: the size is a power of two from "
                f"{MIN_BAR_SIZE} to {largest}; the next one up is {min(above, largest)}"
            )


class Command(Register):
    """Command register (section 7.5.1.1.3)."""

    io_space = Field(0, access=RO)
    memory_space = Field(1)
    bus_master = Field(2)
    parity_error_response = Field(6)
    serr_enable = Field(8)
    intx_disable = Field(10)


class Status(Register):
    """Status register (section 7.5.1.1.4)."""

    immediate_readiness = Field(0, access=RO)
    interrupt_status = Field(3, access=RO)
    capabilities_list = Field(4, access=RO)
    master_data_parity_error = Field(8, access=W1C)
    signaled_target_abort = Field(11, access=W1C)
    received_target_abort = Field(12, access=W1C)
    received_master_abort = Field(13, access=W1C)
    signaled_system_error = Field(14, access=W1C)
    detected_parity_error = Field(15, access=W1C)


class Type0Header(RegisterBlock):
    """The first 64 bytes (PCI Express Base 6.0, section 7.5.1).

         31            16 15             0
    0x00 | device id     | vendor id      |
    0x04 | status        | command        |
    0x08 | class code            |revision|
    0x0C | BIST | header | latency| cache |
    0x10 | base address registers 0 to 5  |
    0x28 | CardBus CIS pointer            |
    0x2C | subsystem id  | subsystem vend.|
    0x30 | expansion ROM base address     |
    0x34 |                      | cap ptr |
    0x3C | lat  | grant  | pin    | line  |
    """

    vendor_id = Register(0x00, width=16, access=RO)
    device_id = Register(0x02, width=16, access=RO)
    command = Command(0x04, width=16)
    status = Status(0x06, width=16)
    revision_id = Register(0x08, width=8, access=RO)
    programming_interface = Register(0x09, width=8, access=RO)
    class_code = Register(0x0A, width=16, access=RO)
    cache_line_size = Register(0x0C, width=8)
    latency_timer = Register(0x0D, width=8, access=RO)
    header_type = Register(0x0E, width=8, access=RO)
    bist = Register(0x0F, width=8, access=RO)
    bar0 = Register(0x10, access=RO)
    bar1 = Register(0x14, access=RO)
    bar2 = Register(0x18, access=RO)
    bar3 = Register(0x1C, access=RO)
    bar4 = Register(0x20, access=RO)
    bar5 = Register(0x24, access=RO)
    subsystem_vendor_id = Register(0x2C, width=16, access=RO)
    subsystem_id = Register(0x2E, width=16, access=RO)
    expansion_rom = Register(0x30, access=RO)
    capabilities_pointer = Register(0x34, width=8, access=RO)
    interrupt_line = Register(0x3C, width=8)
    interrupt_pin = Register(0x3D, width=8, access=RO)

    def set_identity(self, identity: Identity, multi_function: bool) -> None:
        """Store what the function is; the values become the reset values."""
        fixed = {
            self.vendor_id: identity.vendor_id,
            self.device_id: identity.device_id,
            self.revision_id: identity.revision_id,
            self.programming_interface: identity.class_code & 0xFF,
            self.class_code: identity.class_code >> 8,
            self.subsystem_vendor_id: identity.subsystem_vendor_id,
            self.subsystem_id: identity.subsystem_id,
            self.interrupt_pin: identity.interrupt_pin,
            self.header_type: 0x80 if multi_function else 0,
        }
        for register, value in fixed.items():
            register.value = register.reset = value

    def bar_registers(self) -> list[Register]:
        """The six base address registers."""
        return [self.bar0, self.bar1, self.bar2, self.bar3, self.bar4, self.bar5]


class ConfigSpace:
    """4 KiB of configuration space of one function.

    Args:
        identity: the header's fixed values.
        bars: shape of each BAR by its number, 0 to 5.
        capabilities: declarations, in the order in which a driver walks them.
        multi_function: the card has more functions than this one.

    Raises:
        DeclarationError: two capabilities or BARs in one place, or too many of them.
    """

    def __init__(
        self,
        identity: Identity,
        bars: Mapping[int, BarLayout],
        capabilities: Iterable[Capability] = (),
        *,
        multi_function: bool = False,
    ) -> None:
        self.file = RegisterFile(CONFIG_SIZE)
        self.header = Type0Header(self.file)
        self.header.set_identity(identity, multi_function)
        self.bars = dict(bars)
        for number, layout in self.bars.items():
            self._set_bar(number, layout)
        self.capabilities = self._place(list(capabilities))

    def _set_bar(self, number: int, layout: BarLayout) -> None:
        wide = layout.bits == 64
        if not 0 <= number < BAR_COUNT - wide:
            raise DeclarationError(
                f"BAR {number} of {layout.bits} bits does not exist: the six BARs are 0 to 5, and "
                "a 64-bit BAR takes two"
            )
        if wide and number + 1 in self.bars:
            raise DeclarationError(
                f"BAR {number + 1} is the upper half of the 64-bit BAR {number}: "
                f"move it to BAR {number + 2}"
            )
        registers = self.header.bar_registers()
        writable = ~(layout.size - 1)
        low = registers[number]
        low.value = low.reset = (0b100 if wide else 0) | (0b1000 if layout.prefetchable else 0)
        low.set_access(writable & 0xFFFFFFFF, RW)
        if wide:
            registers[number + 1].set_access((writable >> 32) & 0xFFFFFFFF, RW)

    def bar_address(self, number: int) -> int:
        """The bus address that the driver's side gave to a BAR; 0 when it has given none."""
        registers = self.header.bar_registers()
        address = registers[number].value & ~0xF
        if self.bars[number].bits == 64:
            address |= registers[number + 1].value << 32
        return address

    def _place(self, declared: list[Capability]) -> list[Capability]:
        """Place capabilities with a fixed offset first, then the others in the gaps."""
        for index, capability in enumerate(declared):
            if capability.single and type(capability) in map(type, declared[:index]):
                raise DeclarationError(
                    f"two {type(capability).__name__} capabilities: a function has at most one"
                )
        offsets: dict[int, int] = {}
        taken: list[tuple[int, int, Capability]] = []
        for index in sorted(range(len(declared)), key=lambda i: declared[i].at is None):
            capability = declared[index]
            offset = self._offset_for(capability, taken)
            offsets[index] = offset
            taken.append((offset, offset + capability.size, capability))
        placed = [c.place(self.file, offsets[i]) for i, c in enumerate(declared)]
        standard = [c for c in placed if not isinstance(c, ExtendedCapability)]
        extended = [c for c in placed if isinstance(c, ExtendedCapability)]
        if extended and all(c.id != PCI_EXPRESS_ID for c in standard):
            raise DeclarationError(
                f"extended capability {type(extended[0]).__name__} needs a PciExpress one: "
                "software looks for extended capabilities in PCI Express functions only"
            )
        self._chain(standard)
        self._chain_extended(extended)
        return placed

    def _offset_for(self, capability: Capability, taken: list[tuple[int, int, Capability]]) -> int:
        extended = isinstance(capability, ExtendedCapability)
        start, end = (EXTENDED_START, EXTENDED_END) if extended else (STANDARD_START, STANDARD_END)
        name = type(capability).__name__
        if capability.at is not None:
            offset = capability.at
            if offset % capability.alignment or not start <= offset <= end - capability.size:
                raise DeclarationError(
                    f"capability {name} at {offset:#x} is impossible: {capability.size} bytes, "
                    f"{capability.alignment}-byte aligned, must lie from {start:#x} to {end:#x}"
                )
            for other_start, other_end, other in taken:
                if offset < other_end and other_start < offset + capability.size:
                    raise DeclarationError(
                        f"capabilities {type(other).__name__} and {name} are in one place: "
                        f"{other_start:#x} and {offset:#x}"
                    )
            return offset
        offset = start
        for other_start, other_end, _ in sorted(taken, key=lambda t: t[0]):
            if other_end <= offset or other_start >= offset + capability.size:
                continue
            offset = -(-other_end // capability.alignment) * capability.alignment
        if offset + capability.size > end:
            raise DeclarationError(
                f"no room for capability {name} of {capability.size} bytes below {end:#x}"
            )
        return offset

    def _chain(self, standard: list[Capability]) -> None:
        if not standard:
            return
        pointer, status = self.header.capabilities_pointer, self.header.status
        pointer.value = pointer.reset = standard[0].base
        status.capabilities_list = 1
        status.reset = status.value
        for here, after in pairwise(standard):
            here.link_to(after.base)

    def _chain_extended(self, extended: list[ExtendedCapability]) -> None:
        if not extended:
            return
        # Software finds the list only at 0x100, so that one leads it, whatever was declared first.
        extended.sort(key=lambda c: c.base != EXTENDED_START)
        if extended[0].base != EXTENDED_START:
            raise DeclarationError(
                f"no extended capability at {EXTENDED_START:#x}: the first one must be there "
                "(PCI Express Base, section 7.6.3)"
            )
        for here, after in pairwise(extended):
            here.link_to(after.base)

    def read(self, offset: int, size: int) -> int:
        """1 to 8 bytes at `offset`; a place outside the 4 KiB reads as all-ones."""
        if offset < 0 or offset + size > CONFIG_SIZE:
            return (1 << (8 * size)) - 1
        return self.file.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Store 1 to 8 bytes as the access kinds of the registers allow."""
        if offset >= 0 and offset + size <= CONFIG_SIZE:
            self.file.write(offset, size, value)

    def on_write(self, register: Register, hook: Callable[[int], None]) -> None:
        """Call `hook(value)` after the driver wrote `register`."""
        self.file.hook_write(register, hook)

    def restore(self, power_on: bool, function_level: bool = False) -> None:
        """Reset: every register to its reset value, and what capabilities have beside registers.

        Args:
            power_on: power was lost; otherwise sticky bits keep their values.
            function_level: a function level reset, which leaves the link's settings alone.
        """
        self.file.restore(power_on, function_level)
        for capability in self.capabilities:
            capability.restore()
