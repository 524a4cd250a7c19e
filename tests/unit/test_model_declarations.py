"""A declaration that cannot be is refused with one sentence that says what is wrong."""

from __future__ import annotations

import pytest

from softcard import (
    Bar,
    Card,
    DeclarationError,
    Field,
    Function,
    Memory,
    Msi,
    MsiX,
    PlugError,
    PowerManagement,
    RawCapability,
    Register,
    RegisterArray,
    UsageError,
)
from softcard.bus.simulated import SimulatedBus
from softcard.model.link import LinkFeatures


class Plain(Card):
    vendor_id, device_id = 0x1DED, 0x0700

    class bar0(Bar, size=4096):
        go = Register(0)


def refused(card: type[Card]) -> str:
    """The sentence with which a card's class is refused."""
    with pytest.raises(DeclarationError) as caught:
        card()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_declaration_error_is_the_users_mistake() -> None:
    assert issubclass(DeclarationError, UsageError)


def test_ids_are_needed() -> None:
    class NoDevice(Card):
        vendor_id = 0x1DED

    assert "NoDevice has no device_id" in refused(NoDevice)


@pytest.mark.parametrize(
    ("name", "value"),
    [("vendor_id", 0xFFFF), ("vendor_id", 0), ("device_id", 0x10000), ("class_code", 1 << 24),
     ("interrupt_pin", 5), ("revision_id", -1)],
)  # fmt: skip
def test_ids_must_fit(name: str, value: int) -> None:
    card = type("Odd", (Plain,), {name: value})
    assert name in refused(card)


@pytest.mark.parametrize("size", [3000, 0, 8, -16, 1 << 32])
def test_a_bars_size_is_a_power_of_two(size: int) -> None:
    with pytest.raises(DeclarationError, match=f"a BAR of {size} bytes is impossible"):

        class bar0(Bar, size=size):
            pass


def test_a_bar_needs_a_size() -> None:
    class Unsized(Plain):
        class bar1(Bar):
            go = Register(0)

    assert "bar1 of Unsized has no size" in refused(Unsized)


def test_a_bar_must_be_one() -> None:
    class Forgotten(Plain):
        class bar1:
            go = Register(0)

    assert "bar1 of Forgotten is not a BAR" in refused(Forgotten)


def test_there_are_six_bars() -> None:
    class Seventh(Plain):
        class bar6(Bar, size=4096):  # noqa: N801
            go = Register(0)

    assert "bar6 of Seventh is not a BAR" in refused(Seventh)


def test_a_wide_bar_takes_two_places() -> None:
    class Crowded(Plain):
        class bar0(Bar, size=4096, bits=64):
            go = Register(0)

        class bar1(Bar, size=4096):
            go = Register(0)

    assert "BAR 1 is the upper half of the 64-bit BAR 0" in refused(Crowded)


def test_the_last_bar_cannot_be_wide() -> None:
    class Wide(Plain):
        class bar5(Bar, size=4096, bits=64):
            go = Register(0)

    assert "BAR 5 of 64 bits does not exist" in refused(Wide)


def test_registers_may_not_overlap() -> None:
    class Overlapping(Plain):
        class bar0(Bar, size=4096):
            first = Register(0x10, width=64)
            second = Register(0x14)

    assert "register second at 0x14 overlaps register first at 0x10" in refused(Overlapping)


def test_an_array_and_memory_may_not_overlap() -> None:
    class Overlapping(Plain):
        class bar0(Bar, size=4096):
            queue = RegisterArray(Register(0x100), count=16)
            memory = Memory(0x13C, 16)

    sentence = refused(Overlapping)
    assert "memory" in sentence
    assert "queue[15]" in sentence


def test_a_register_must_lie_in_its_bar() -> None:
    class Outside(Plain):
        class bar0(Bar, size=16):
            far = Register(0x10)

    assert "register far at 0x10" in refused(Outside)


def test_memory_must_lie_in_its_bar() -> None:
    class Outside(Plain):
        class bar0(Bar, size=4096):
            memory = Memory(0x800, 0x801)

    assert "memory memory at 0x800" in refused(Outside)


def test_fields_may_not_overlap() -> None:
    with pytest.raises(DeclarationError, match="overlaps another field"):

        class Broken(Register):
            one = Field(7, 4)
            two = Field(4, 0)


def test_the_msix_table_needs_a_bar() -> None:
    class NoBar(Plain):
        msix = MsiX(vectors=4, table=(2, 0), pba=(2, 0x800))

    assert "table is in BAR 2, which the card does not have" in refused(NoBar)


def test_the_msix_table_may_not_cover_registers() -> None:
    class Covered(Plain):
        msix = MsiX(vectors=4, table=(0, 0), pba=(0, 0x800))

    assert "MSI-X table" in refused(Covered)


def test_the_msix_table_must_lie_in_its_bar() -> None:
    class Outside(Plain):
        msix = MsiX(vectors=2048, table=(0, 0x800), pba=(0, 0x8))

    assert "MSI-X table" in refused(Outside)


def test_two_capabilities_may_not_share_a_place() -> None:
    class Shared(Plain):
        power = PowerManagement(at=0x40)
        raw = RawCapability(0x42, bytes(10), at=0x44)

    sentence = refused(Shared)
    assert "PowerManagement and RawCapability are in one place" in sentence


def test_a_card_has_one_msi_capability() -> None:
    class Two(Plain):
        first = Msi()
        second = Msi()

    assert "two Msi capabilities" in refused(Two)


def test_a_hook_needs_a_register_of_the_card() -> None:
    class Replaced(Plain):
        class bar0(Bar, size=4096):
            stop = Register(0)

        @Plain.bar0.go.on_write
        def start(self, value: int) -> None:
            pass

    assert "start hooks register go, which is in no BAR of Replaced" in refused(Replaced)


def test_one_read_hook_can_answer() -> None:
    class Two(Plain):
        @Plain.bar0.go.on_read
        def one(self) -> int:
            return 1

        @Plain.bar0.go.on_read
        def two(self) -> int:
            return 2

    assert "two read hooks" in refused(Two)


def test_a_card_has_eight_functions_at_most() -> None:
    class More(Function):
        vendor_id, device_id = 0x1DED, 0x0701

    class Nine(Plain):
        more_functions = (More,) * 8

    assert "9 functions" in refused(Nine)


def test_a_constructor_must_call_that_of_its_base(simulated_bus: SimulatedBus) -> None:
    class Lazy(Plain):
        def __init__(self) -> None:
            pass

    with pytest.raises(DeclarationError, match=r"Lazy.__init__ does not call super"):
        simulated_bus.plug(Lazy())


def test_a_declared_register_has_no_value() -> None:
    with pytest.raises(DeclarationError, match="only declared here"):
        _ = Plain.bar0.go.value


# What a bus cannot do is refused when the card is plugged in, naming bus and feature.


class Huge(Plain):
    class bar2(Bar, size=1 << 30, bits=64):
        go = Register(0)


class Second(Function):
    vendor_id, device_id = 0x1DED, 0x0702


class TwoFunctions(Plain):
    more_functions = (Second,)


def test_a_bar_that_is_too_large_for_the_bus_is_refused() -> None:
    with pytest.raises(PlugError, match="BAR 2 of Huge has 0x40000000 bytes, but the small bus"):
        Huge().enter_slot(LinkFeatures(bus="small", max_bar_size=1 << 24))


def test_more_functions_than_the_bus_has_are_refused() -> None:
    with pytest.raises(PlugError, match="TwoFunctions has 2 functions, but a card on the small"):
        TwoFunctions().enter_slot(LinkFeatures(bus="small", max_functions=1))


def test_a_card_is_in_one_slot_at_a_time(simulated_bus: SimulatedBus) -> None:
    card = Plain()
    slot = simulated_bus.plug(card)
    with pytest.raises(PlugError, match="Plain is plugged in already"):
        simulated_bus.plug(card)
    slot.unplug()
    simulated_bus.plug(card)
