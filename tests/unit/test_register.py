from __future__ import annotations

from collections.abc import Callable

import pytest

from softcard.errors import DeclarationError
from softcard.pcie.register import (
    RC,
    RO,
    RW,
    W1C,
    W1S,
    WO,
    Access,
    Field,
    Register,
    RegisterArray,
    hooks_of,
)
from softcard.pcie.register_file import RegisterBlock, RegisterFile, declared_registers


class Control(Register):
    enable = Field(0)
    page_size = Field(10, 7, reset=0xC)
    events = Field(15, 12, access=W1C)
    ready = Field(31, access=RO, reset=1)


class Block(RegisterBlock):
    control = Control(0x14)
    message = Register(0x18, width=64)
    short = Register(0x20, width=16, reset=0x1234)
    byte = Register(0x22, width=8)
    doorbells = RegisterArray(Register(0x40, access=WO), count=4, stride=8)


@pytest.fixture
def block() -> Block:
    return Block(RegisterFile(0x100))


def one_register(access: Access, held: int) -> Register:
    class OneRegister(RegisterBlock):
        register = Register(0, width=32, access=access)

    made = OneRegister(RegisterFile(8)).register
    made.value = held
    return made


def test_a_block_starts_with_the_reset_values_of_registers_and_fields(block: Block) -> None:
    assert block.control.value == 1 << 31 | 0xC << 7
    assert block.short.value == 0x1234
    assert block.message.value == 0


def test_fields_read_and_change_only_their_own_bits(block: Block) -> None:
    block.control.page_size = 3
    block.control.enable = True
    assert (block.control.page_size, block.control.enable, block.control.ready) == (3, 1, 1)
    assert block.control.value == 1 << 31 | 3 << 7 | 1


@pytest.mark.parametrize("value", [16, -1])
def test_a_value_too_large_for_its_field_is_refused(block: Block, value: int) -> None:
    with pytest.raises(ValueError, match="does not fit field page_size"):
        block.control.page_size = value


@pytest.mark.parametrize("value", [1 << 16, -1])
def test_a_value_too_large_for_its_register_is_refused(block: Block, value: int) -> None:
    with pytest.raises(ValueError, match="does not fit register short of 16 bits"):
        block.short.value = value


def test_the_card_may_store_what_the_driver_may_not(block: Block) -> None:
    block.control.ready = 0
    assert block.control.ready == 0
    block.file.write(0x14, 4, 1 << 31)
    assert block.control.ready == 0


@pytest.mark.parametrize(
    ("access", "written", "held", "read"),
    [
        (RO, 0b0101, 0b0011, 0b0011),
        (RW, 0b0101, 0b0101, 0b0101),
        (W1C, 0b0101, 0b0010, 0b0010),
        (W1S, 0b0101, 0b0111, 0b0111),
        (RC, 0b0101, 0b0011, 0b0011),
        (WO, 0b0101, 0b0101, 0),
    ],
)
def test_a_write_does_what_the_access_kind_says(
    access: Access, written: int, held: int, read: int
) -> None:
    register = one_register(access, 0b0011)
    register.write(written)
    assert register.value == held
    assert register.read() == read


def test_reading_clears_a_register_that_is_cleared_by_reading() -> None:
    register = one_register(RC, 0xF00F)
    assert register.read() == 0xF00F
    assert register.value == 0


def test_reading_a_byte_clears_only_that_byte() -> None:
    class Counters(RegisterBlock):
        errors = Register(0, access=RC)

    block = Counters(RegisterFile(4))
    block.errors.value = 0x11223344
    assert block.file.read(1, 1) == 0x33
    assert block.errors.value == 0x11220044


def test_writing_one_byte_keeps_the_others_of_a_write_only_register() -> None:
    class Parts(RegisterBlock):
        key = Register(0, access=WO)

    block = Parts(RegisterFile(4))
    block.file.write(0, 2, 0x1122)
    block.file.write(2, 2, 0x3344)
    assert block.key.value == 0x33441122


def test_bits_that_no_field_covers_ignore_writes(block: Block) -> None:
    block.file.write(0x14, 4, 0xFFFFFFFF)
    assert block.control.value == 1 << 31 | 0xF << 7 | 1


def test_set_access_changes_the_given_bits_only(block: Block) -> None:
    block.short.set_access(0x00FF, RO)
    block.file.write(0x20, 2, 0xFFFF)
    assert block.short.value == 0xFF34
    assert Block.short.masks[RW] == 0xFFFF


def test_two_blocks_of_one_class_share_nothing(block: Block) -> None:
    other = Block(RegisterFile(0x100))
    block.control.enable = 1
    block.short.set_access(0xFFFF, RO)
    assert other.control.enable == 0
    assert other.short.masks[RW] == 0xFFFF


def test_a_register_need_not_be_aligned() -> None:
    class Packed(RegisterBlock):
        wide = Register(3, width=64)

    block = Packed(RegisterFile(16))
    block.file.write(3, 8, 0x1122334455667788)
    assert block.wide.value == 0x1122334455667788
    assert block.file.read(4, 2) == 0x6677


def test_one_access_reaches_every_register_it_touches(block: Block) -> None:
    block.file.write(0x1C, 8, 0xAB_5678_55667788)
    assert block.message.value == 0x55667788_00000000
    assert block.short.value == 0x5678
    assert block.byte.value == 0xAB
    assert block.file.read(0x1E, 5) == 0xAB_5678_5566


def test_places_without_a_register_read_zero_and_ignore_writes(block: Block) -> None:
    for offset in (0x00, 0x23, 0x100, 0x1000):
        block.file.write(offset, 4, 0xFFFFFFFF)
        assert block.file.read(offset, 1) == 0


def test_a_block_of_any_size_keeps_what_is_written() -> None:
    class Large(RegisterBlock):
        last = Register(0xFFFFF8, width=64)

    block = Large(RegisterFile(1 << 24))
    block.file.write(0xFFFFF8, 8, 1 << 63)
    assert block.file.read(0xFFFFF8, 8) == 1 << 63


def test_an_array_has_registers_a_stride_apart(block: Block) -> None:
    block.file.write(0x50, 4, 77)
    assert [d.value for d in block.doorbells] == [0, 0, 77, 0]
    assert [d.at for d in block.doorbells] == [0x40, 0x48, 0x50, 0x58]
    assert [d.offset for d in block.doorbells] == [0x40, 0x48, 0x50, 0x58]
    assert block.doorbells[2].name == "doorbells[2]"
    assert len(block.doorbells) == 4


def test_an_element_beyond_the_array_is_refused_with_its_name(block: Block) -> None:
    with pytest.raises(IndexError, match=r"doorbells\[4\] does not exist: there are 4"):
        block.doorbells[4]


@pytest.mark.parametrize(
    "touch",
    [
        lambda: Block.control.value,
        lambda: setattr(Block.control, "value", 1),
        lambda: Block.control.enable,
        lambda: Block.doorbells[0],
    ],
)
def test_the_declaration_itself_holds_no_value(touch: Callable[[], object]) -> None:
    with pytest.raises(DeclarationError, match="only declared here"):
        touch()


def test_a_read_hook_answers_for_its_register(block: Block) -> None:
    block.file.hook_read(block.short, lambda: 0xBEEF)
    assert block.file.read(0x20, 2) == 0xBEEF
    assert block.file.read(0x21, 1) == 0xBE
    assert block.short.value == 0x1234


@pytest.mark.parametrize("result", [None, -1, 0x10000, "text"])
def test_a_read_hook_must_return_what_fits_its_register(block: Block, result: object) -> None:
    block.file.hook_read(block.short, lambda: result)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="read hook of register short returned"):
        block.file.read(0x20, 2)


def test_an_error_in_a_hook_reaches_the_caller(block: Block) -> None:
    def fail() -> int:
        raise KeyError("of the card")

    block.file.hook_read(block.short, fail)
    with pytest.raises(KeyError, match="of the card"):
        block.file.read(0x20, 2)


def test_a_write_hook_sees_the_value_after_the_register_was_updated(block: Block) -> None:
    calls: list[tuple[int, int]] = []
    block.file.hook_write(block.control, lambda value: calls.append((value, block.control.value)))
    block.file.write(0x14, 4, 0xFFFFFFFF)
    assert calls == [(0xFFFFFFFF, 1 << 31 | 0xF << 7 | 1)]


def test_a_hook_of_a_partial_write_gets_the_read_write_bits_that_stay(block: Block) -> None:
    calls: list[int] = []
    block.control.value = 0x8000_F001
    block.file.hook_write(block.control, calls.append)
    block.file.write(0x15, 1, 0x11)
    assert calls == [0x1101]
    assert block.control.value == 0x8000_E101


def test_a_partial_write_calls_the_hook_once_for_each_register_in_order(block: Block) -> None:
    calls: list[str] = []
    block.file.hook_write(block.byte, lambda _: calls.append("byte"))
    block.file.hook_write(block.short, lambda _: calls.append("short"))
    block.file.hook_write(block.message, lambda _: calls.append("message"))
    block.file.write(0x1F, 4, 0)
    assert calls == ["message", "short", "byte"]


def test_every_write_hook_of_a_register_is_called_in_order(block: Block) -> None:
    calls: list[tuple[str, int]] = []
    block.file.hook_write(block.short, lambda value: calls.append(("first", value)))
    block.file.hook_write(block.short, lambda value: calls.append(("second", value)))
    block.file.write(0x20, 2, 7)
    assert calls == [("first", 7), ("second", 7)]


def test_a_second_read_hook_is_refused(block: Block) -> None:
    block.file.hook_read(block.short, lambda: 0)
    with pytest.raises(DeclarationError, match="short has two read hooks"):
        block.file.hook_read(block.short, lambda: 0)


def test_a_register_of_another_block_cannot_be_hooked(block: Block) -> None:
    with pytest.raises(DeclarationError, match="not one of these registers"):
        block.file.hook_write(Block(RegisterFile(0x100)).short, lambda _: None)


def test_methods_remember_the_registers_that_they_hook() -> None:
    @Block.control.on_write
    @Block.short.on_write
    def written(card: object, value: int) -> None: ...

    @Block.doorbells.on_read
    def ring(card: object, index: int) -> int:
        return index

    assert hooks_of(written) == [("write", Block.short), ("write", Block.control)]
    assert hooks_of(ring) == [("read", Block.doorbells)]


def test_a_register_class_may_define_its_own_read_and_write() -> None:
    class Odd(Register):
        def read(self, mask: int = -1) -> int:
            return super().read(mask) | 1

        def write(self, value: int, mask: int = -1) -> None:
            super().write(value * 2, mask)

    class OddBlock(RegisterBlock):
        odd = Odd(0)

    block = OddBlock(RegisterFile(4))
    block.file.write(0, 4, 8)
    assert block.odd.value == 16
    assert block.file.read(0, 4) == 17
    assert block.file.read(0, 1) == 17


def test_a_reset_restores_all_but_what_is_sticky() -> None:
    class Mixed(Register):
        plain = Field(7, 0, reset=1)
        logged = Field(15, 8, reset=2, sticky=True)
        link = Field(23, 16, reset=3, survives_flr=True)

    class MixedBlock(RegisterBlock):
        mixed = Mixed(0)

    def after(power_on: bool, function_level: bool = False) -> int:
        block = MixedBlock(RegisterFile(4))
        block.mixed.value = 0x00AAAAAA
        block.file.restore(power_on, function_level)
        return block.mixed.value

    assert after(power_on=True) == 0x030201
    assert after(power_on=False) == 0x03AA01
    assert after(power_on=False, function_level=True) == 0xAAAA01


class Recorder:
    """A region that remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("read", offset, size))
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(("write", offset, size, value))


def test_a_region_answers_for_its_bytes(block: Block) -> None:
    region = Recorder()
    block.file.add_region("table", 0x80, 0x20, region)
    assert block.file.read(0x88, 8) == (1 << 64) - 1
    block.file.write(0x9F, 1, 5)
    assert region.calls == [("read", 8, 8), ("write", 0x1F, 1, 5)]


def test_an_access_across_a_regions_edge_is_split_there_and_nowhere_else() -> None:
    class Edges(RegisterBlock):
        before = Register(0x00, access=RC)
        after = Register(0x06, width=16)

    block = Edges(RegisterFile(8))
    region = Recorder()
    block.file.add_region("table", 4, 2, region)
    reads: list[int] = []

    def count() -> int:
        reads.append(1)
        return 0x3344

    block.file.hook_read(block.after, count)
    block.before.value = 0x11223344
    assert block.file.read(0, 8) == 0x3344_FFFF_11223344
    block.file.write(2, 6, 0x1122_5566_7788)
    assert region.calls == [("read", 0, 2), ("write", 0, 2, 0x5566)]
    assert reads == [1]
    assert (block.before.value, block.after.value) == (0, 0x1122)


def test_a_file_tells_where_accesses_call_something(block: Block) -> None:
    block.file.hook_write(block.short, lambda _: None)
    block.file.add_region("table", 0x80, 8, Recorder())
    assert block.file.hooked(0x20, 0x21)
    assert block.file.hooked(0x21, 0x30)
    assert block.file.hooked(0x87, 0x90)
    assert not block.file.hooked(0x22, 0x80)
    assert not block.file.hooked(0x00, 0x20)


def test_a_file_knows_the_name_of_every_place(block: Block) -> None:
    block.file.add_region("MSI-X table", 0x80, 8, Recorder())
    names = [block.file.name_at(at) for at in (0x1F, 0x20, 0x22, 0x23, 0x48, 0x87, 0x88)]
    assert names == ["message", "short", "byte", "", "doorbells[1]", "MSI-X table", ""]


def test_printing_a_register_shows_its_fields(block: Block) -> None:
    assert (
        repr(block.control) == "control=0x80000600 (enable=0x0 page_size=0xc events=0x0 ready=0x1)"
    )
    assert repr(Block.control) == "<register control at 0x14, 32 bits>"


def overlapping_registers() -> None:
    class Overlap(RegisterBlock):
        first = Register(0x10, width=64)
        second = Register(0x14)

    Overlap(RegisterFile(0x100))


def overlapping_array() -> None:
    class Overlap(RegisterBlock):
        lanes = RegisterArray(Register(0x00), count=8)
        status = Register(0x1E, width=16)

    Overlap(RegisterFile(0x100))


def register_outside() -> None:
    class Outside(RegisterBlock):
        last = Register(0xFE)

    Outside(RegisterFile(0x100))


def region_over_register() -> None:
    Block(RegisterFile(0x100)).file.add_region("table", 0x24 - 4, 16, Recorder())


def region_outside() -> None:
    RegisterFile(0x100).add_region("table", 0xF8, 16, Recorder())


def overlapping_fields() -> None:
    class Overlap(Register):
        low = Field(4, 0)
        high = Field(7, 4)


def field_outside() -> None:
    class Wide(Register):
        top = Field(16)

    Wide(0, width=16)


def field_with_a_taken_name() -> None:
    class Taken(Register):
        reset = Field(1)


def register_with_a_taken_name() -> None:
    class Taken(RegisterBlock):
        file = Register(0)  # type: ignore[assignment]

    Taken(RegisterFile(4))


@pytest.mark.parametrize(
    ("declare", "complaint"),
    [
        (overlapping_registers, "register second at 0x14 overlaps register first at 0x10"),
        (overlapping_array, r"register status at 0x1e overlaps register lanes\[7\] at 0x1c"),
        (register_outside, "register last at 0xfe to 0x101 does not fit 0x100 bytes"),
        (region_over_register, "table at 0x20 overlaps register short at 0x20"),
        (region_outside, "table at 0xf8 to 0x107 does not fit 0x100 bytes"),
        (overlapping_fields, r"field high of register Overlap \(bits 7:4\) overlaps"),
        (field_outside, "field top ends at bit 16, but the register has 16"),
        (field_with_a_taken_name, "call it reset_"),
        (register_with_a_taken_name, "call it file_"),
        (lambda: Field(3, 7), "a field of bits 3:7 is impossible"),
        (lambda: Field(64), "impossible"),
        (lambda: Field(1, 0, reset=4), "reset value 0x4 does not fit"),
        (lambda: Register(0, width=24), "a register of 24 bits"),
        (lambda: Register(-4), "offset -4"),
        (lambda: Register(0, width=8, reset=0x100), "reset value 0x100 does not fit 8 bits"),
        (lambda: RegisterArray(Register(0), count=0), "an array of 0 registers"),
        (lambda: RegisterArray(Register(0), count=2, stride=2), "stride of at least 4"),
    ],
)
def test_an_impossible_declaration_is_refused(
    declare: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(DeclarationError, match=complaint):
        declare()


def test_a_subclass_may_redefine_and_drop_fields_of_its_parent() -> None:
    class Redefined(Control):
        page_size = Field(10, 7, access=RO, reset=1)
        events = None  # type: ignore[assignment]

    assert [f.name for f in Redefined.fields] == ["enable", "page_size", "ready"]
    assert Redefined(0).reset == 1 << 31 | 1 << 7


def test_a_subclass_of_a_block_inherits_redefines_and_drops_registers() -> None:
    class Derived(Block):
        short = Register(0x20, width=16, reset=0x4321)
        byte = None  # type: ignore[assignment]
        more = Register(0x30)

    assert set(declared_registers(Derived)) == {"control", "message", "short", "doorbells", "more"}
    assert Derived(RegisterFile(0x100)).short.value == 0x4321
