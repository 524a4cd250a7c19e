"""Registers of a card as its driver meets them: hooks, arrays, widths, subclasses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softcard import RO, W1C, WO, Bar, Card, Field, Memory, Register, RegisterArray
from softcard.bus.simulated import SimulatedBus, SimulatedDevice


class Control(Register):
    enable = Field(0)
    speed = Field(5, 4)
    error = Field(31, access=W1C)


class Recorder(Card):
    """Notes every call of a hook."""

    vendor_id, device_id = 0x1DED, 0x0100

    class bar0(Bar, size=4096):
        control = Control(0x00)
        answer = Register(0x08, access=RO)
        wide = Register(0x10, width=64)
        byte = Register(0x18, width=8)
        word = Register(0x1A, width=16)
        plain = Register(0x20)
        doorbells = RegisterArray(Register(0x40, access=WO), count=4, stride=8)
        slots = RegisterArray(Register(0x80, width=16, access=RO), count=4)

    class bar2(Bar, size=8192, bits=64, prefetchable=True):
        before = Register(0x0FFC)
        memory = Memory(0x1000, 0x800)
        after = Register(0x1800)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []

    @bar0.control.on_write
    def control_written(self, value: int) -> None:
        self.calls.append(("control", value, self.bar0.control.value))

    @bar0.answer.on_read
    def give_answer(self) -> int:
        self.calls.append(("answer",))
        return 0x1122_3344

    @bar0.wide.on_write
    @bar0.byte.on_write
    def sized(self, value: int) -> None:
        self.calls.append(("sized", value))

    @bar0.doorbells.on_write
    def ring(self, index: int, value: int) -> None:
        self.calls.append(("ring", index, value))

    @bar0.slots.on_read
    def slot(self, index: int) -> int:
        return 0x100 + index


@pytest.fixture
def card() -> Recorder:
    return Recorder()


@pytest.fixture
def device(simulated_bus: SimulatedBus, card: Recorder) -> SimulatedDevice:
    return simulated_bus.plug(card)[0]


def test_a_write_hook_runs_after_the_register_was_updated(
    card: Recorder, device: SimulatedDevice
) -> None:
    device.write(0, 0x00, 0x21)
    assert card.calls == [("control", 0x21, 0x21)]
    assert card.bar0.control.speed == 2


def test_a_write_hook_gets_what_was_written_not_what_was_kept(
    card: Recorder, device: SimulatedDevice
) -> None:
    card.bar0.control.error = 1
    device.write(0, 0x00, 0xFFFF_FFFF)
    assert card.calls == [("control", 0xFFFF_FFFF, 0x31)]


def test_a_read_hook_answers(card: Recorder, device: SimulatedDevice) -> None:
    assert device.read(0, 0x08) == 0x1122_3344


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [(0x08, 1, 0x44), (0x0B, 1, 0x11), (0x09, 2, 0x2233), (0x08, 8, 0x1122_3344)],
)
def test_a_read_of_any_width_calls_the_hook_once(
    card: Recorder, device: SimulatedDevice, offset: int, size: int, value: int
) -> None:
    assert device.read(0, offset, size) == value
    assert card.calls == [("answer",)]


def test_a_read_that_touches_no_byte_of_a_register_does_not_call_its_hook(
    card: Recorder, device: SimulatedDevice
) -> None:
    device.read(0, 0x04, 4)
    device.read(0, 0x0C, 4)
    assert card.calls == []


def test_a_wide_write_reaches_each_register_once_in_order(
    card: Recorder, device: SimulatedDevice
) -> None:
    device.write(0, 0x18, 0xAAAA_5555_BBBB_CC77, 8)
    assert card.calls == [("sized", 0x77)]
    assert card.bar0.word.value == 0xBBBB


def test_half_a_wide_register_keeps_the_other_half(card: Recorder, device: SimulatedDevice) -> None:
    device.write(0, 0x10, 0x1111_1111_2222_2222, 8)
    device.write(0, 0x14, 0x3333_3333)
    assert card.calls[-1] == ("sized", 0x3333_3333_2222_2222)
    assert device.read(0, 0x10, 8) == 0x3333_3333_2222_2222


def test_a_byte_of_a_register_can_be_written(card: Recorder, device: SimulatedDevice) -> None:
    device.write(0, 0x20, 0x1234_5678)
    device.write(0, 0x21, 0xFF, 1)
    assert device.read(0, 0x20) == 0x1234_FF78


def test_an_unaligned_access_takes_bytes_of_both_registers(
    card: Recorder, device: SimulatedDevice
) -> None:
    device.write(0, 0x16, 0x0077_AABB, 4)
    assert device.read(0, 0x10, 8) == 0xAABB_0000_0000_0000
    assert device.read(0, 0x18, 1) == 0x77
    assert device.read(0, 0x16, 4) == 0x0077_AABB


@pytest.mark.parametrize("index", range(4))
def test_hooks_of_an_array_get_the_index(
    card: Recorder, device: SimulatedDevice, index: int
) -> None:
    device.write(0, 0x40 + 8 * index, 7)
    assert card.calls == [("ring", index, 7)]
    assert device.read(0, 0x80 + 2 * index, 2) == 0x100 + index


def test_between_the_registers_of_an_array_there_is_nothing(
    card: Recorder, device: SimulatedDevice
) -> None:
    device.write(0, 0x44, 0xFFFF_FFFF)
    assert card.calls == []
    assert device.read(0, 0x44) == 0


def test_one_read_spans_several_registers_of_an_array(device: SimulatedDevice) -> None:
    assert device.read(0, 0x80, 8) == 0x0103_0102_0101_0100


def test_what_no_register_covers_reads_as_zero_and_ignores_writes(
    device: SimulatedDevice,
) -> None:
    for offset in (0x24, 0x800, 0xFFC, 0xFF8):
        device.write(0, offset, 0xFFFF_FFFF)
        assert device.read(0, offset) == 0


def test_a_bar_that_the_card_has_not_answers_as_nobody(device: SimulatedDevice) -> None:
    device.write(4, 0, 1)
    assert device.read(4, 0, 2) == 0xFFFF
    assert device.read_block(4, 0, 5) == b"\xff" * 5


# Memory.


def test_memory_holds_what_was_written_and_starts_as_zero(
    card: Recorder, device: SimulatedDevice
) -> None:
    assert device.read_block(2, 0x1000, 0x800) == bytes(0x800)
    device.write_block(2, 0x1003, b"softcard")
    device.write(2, 0x1010, 0x1122_3344_5566_7788, 8)
    assert device.read_block(2, 0x1003, 8) == b"softcard"
    assert bytes(card.bar2.memory.view[0x10:0x18]) == bytes.fromhex("8877665544332211")


def test_a_block_may_span_registers_and_memory(card: Recorder, device: SimulatedDevice) -> None:
    device.write_block(2, 0x0FFC, b"\x01\x02\x03\x04" + bytes(0x800) + b"\x09\x0a\x0b\x0c")
    assert card.bar2.before.value == 0x0403_0201
    assert card.bar2.after.value == 0x0C0B_0A09
    assert device.read_block(2, 0x0FFE, 4) == b"\x03\x04\0\0"
    assert device.read_block(2, 0x17FE, 4) == b"\0\0\x09\x0a"


def test_a_block_over_registers_calls_their_hooks(card: Recorder, device: SimulatedDevice) -> None:
    device.write_block(0, 0x40, (5).to_bytes(4, "little") + bytes(4) + (6).to_bytes(4, "little"))
    assert card.calls == [("ring", 0, 5), ("ring", 1, 6)]


class Patchwork(Card):
    """Registers, memory and nothing, close together and badly aligned."""

    vendor_id, device_id = 0x1DED, 0x0103

    class bar0(Bar, size=64):
        byte = Register(0x01, width=8)
        word = Register(0x06, width=16)
        odd = Memory(0x09, 3)
        wide = Register(0x10, width=64)
        read_only = Register(0x18, access=RO, reset=0x1234_5678)
        memory = Memory(0x1C, 9)
        after = Register(0x26, width=16)
        last = Register(0x3C)


@given(
    blocks=st.lists(st.tuples(st.integers(0, 70), st.binary(max_size=70)), min_size=1, max_size=4)
)
def test_a_block_is_the_same_as_its_bytes(blocks: list[tuple[int, bytes]]) -> None:
    with SimulatedBus() as bus:
        in_blocks, in_bytes = (bus.plug(Patchwork())[0] for _ in range(2))
        for offset, data in blocks:
            in_blocks.write_block(0, offset, data)
            for index, byte in enumerate(data):
                in_bytes.write(0, offset + index, byte, 1)
            expected = bytes(in_bytes.read(0, offset + index, 1) for index in range(len(data)))
            assert in_blocks.read_block(0, offset, len(data)) == expected
        assert in_blocks.read_block(0, 0, 64) == in_bytes.read_block(0, 0, 64)


def test_a_huge_block_over_nothing_takes_no_time(card: Recorder, device: SimulatedDevice) -> None:
    assert device.read_block(0, 0x1000, 1 << 26) == bytes(1 << 26)
    device.write_block(0, 0x1000, bytes(1 << 26))


# Subclasses, instances.


class Extended(Recorder):
    """Another register, and another answer, on the same BAR."""

    device_id = 0x0101

    class bar0(Recorder.bar0):
        extra = Register(0x100)

    def give_answer(self) -> int:
        return super().give_answer() + 1

    @bar0.plain.on_write
    def plain_written(self, value: int) -> None:
        self.calls.append(("plain", value))

    @bar0.extra.on_write
    def extra_written(self, value: int) -> None:
        self.calls.append(("extra", value))


def test_a_subclass_inherits_overrides_and_adds_hooks(simulated_bus: SimulatedBus) -> None:
    card = Extended()
    device = simulated_bus.plug(card)[0]
    assert device.read(0, 0x08) == 0x1122_3345
    device.write(0, 0x20, 1)
    device.write(0, 0x100, 2)
    device.write(0, 0x40, 3)
    assert card.calls == [("answer",), ("plain", 1), ("extra", 2), ("ring", 0, 3)]


def test_a_subclass_leaves_its_parent_alone(card: Recorder, device: SimulatedDevice) -> None:
    device.write(0, 0x20, 1)
    device.write(0, 0x100, 2)
    assert card.calls == []
    assert not hasattr(card.bar0, "extra")


class WithoutMemory(Recorder):
    bar2 = None  # type: ignore[assignment]


def test_a_subclass_can_take_a_bar_away(simulated_bus: SimulatedBus) -> None:
    device = simulated_bus.plug(WithoutMemory())[0]
    assert device.read(2, 0x1000) == 0xFFFF_FFFF
    device.config_write(0x18, 0xFFFF_FFFF)
    assert device.config_read(0x18) == 0


class Twice(Card):
    vendor_id, device_id = 0x1DED, 0x0102

    class bar0(Bar, size=16):
        go = Register(0)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    @bar0.go.on_write
    def one(self, _value: int) -> None:
        self.calls.append("one")

    @bar0.go.on_write
    def two(self, _value: int) -> None:
        self.calls.append("two")


def test_a_register_may_have_several_write_hooks(simulated_bus: SimulatedBus) -> None:
    card = Twice()
    simulated_bus.plug(card)[0].write(0, 0, 1)
    assert sorted(card.calls) == ["one", "two"]


def test_two_cards_of_one_class_share_nothing(simulated_bus: SimulatedBus) -> None:
    cards = Recorder(), Recorder()
    first, second = (simulated_bus.plug(card)[0] for card in cards)
    first.write(0, 0x00, 0x11)
    first.write(0, 0x20, 0x99)
    first.write(0, 0x48, 0x55)
    first.write_block(2, 0x1000, b"mine")
    first.config_write(0x3C, 0x42, 1)
    assert cards[1].calls == []
    assert second.read(0, 0x00) == second.read(0, 0x20) == 0
    assert second.read_block(2, 0x1000, 4) == bytes(4)
    assert second.config_read(0x3C, 1) == 0
    assert cards[1].bar0.doorbells[1].value == 0
    assert cards[0].bar0.doorbells[1].value == 0x55


def test_a_card_that_was_used_leaves_the_class_as_it_was(simulated_bus: SimulatedBus) -> None:
    simulated_bus.plug(Recorder())[0].write(0, 0x20, 0x99)
    assert simulated_bus.plug(Recorder())[0].read(0, 0x20) == 0
