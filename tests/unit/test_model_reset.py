"""Resets and power states."""

from __future__ import annotations

import pytest

from softcard import (
    AdvancedErrorReporting,
    Bar,
    Card,
    Field,
    Memory,
    PciExpress,
    PowerManagement,
    PowerState,
    Register,
    ResetKind,
)
from softcard.bus.simulated import SimulatedBus, SimulatedDevice

COMMAND, INTERRUPT_LINE = 0x04, 0x3C
POWER_MANAGEMENT, PCI_EXPRESS = 0x01, 0x10
FLR, MAX_READ_512 = 1 << 15, 2 << 12
D0, D1, D3_HOT = 0, 1, 3


class Mixed(Register):
    ordinary = Field(3, 0, reset=5)
    lasting = Field(7, 4, reset=5, sticky=True)
    of_the_link = Field(11, 8, reset=5, survives_flr=True)


class Resettable(Card):
    vendor_id, device_id = 0x1DED, 0x0300
    power = PowerManagement(no_soft_reset=True)
    express = PciExpress()
    errors = AdvancedErrorReporting()

    class bar0(Bar, size=8192):
        mixed = Mixed(0)
        memory = Memory(0x1000, 0x1000)

    def __init__(self) -> None:
        super().__init__()
        self.resets: list[ResetKind] = []
        self.seen_at_reset: list[int] = []
        self.states: list[PowerState] = []

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)
        self.seen_at_reset.append(self.bar0.mixed.value)

    def on_power_state(self, state: PowerState) -> None:
        self.states.append(state)


class SoftReset(Resettable):
    power = PowerManagement(no_soft_reset=False)


class NoFlr(Resettable):
    express = PciExpress(flr=False)


@pytest.fixture
def card() -> Resettable:
    return Resettable()


@pytest.fixture
def device(simulated_bus: SimulatedBus, card: Resettable) -> SimulatedDevice:
    return simulated_bus.plug(card)[0]


def set_power(device: SimulatedDevice, state: int) -> None:
    device.config_write(device.find_capability(POWER_MANAGEMENT) + 4, state, 2)


def initiate_flr(device: SimulatedDevice) -> None:
    device.config_write(device.find_capability(PCI_EXPRESS) + 8, FLR, 2)


def test_plugging_in_is_a_power_on_reset(card: Resettable, device: SimulatedDevice) -> None:
    assert card.resets == [ResetKind.POWER_ON]
    assert device.read(0, 0) == 0x555


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(ResetKind.POWER_ON, 0x555), (ResetKind.HOT, 0x5F5), (ResetKind.FLR, 0xFF5)],
)
def test_a_reset_restores_what_it_should_and_then_tells_the_card(
    card: Resettable, device: SimulatedDevice, kind: ResetKind, expected: int
) -> None:
    device.write(0, 0, 0xFFF)
    device.slot.reset(kind)
    assert card.resets[1:] == [kind]
    assert card.seen_at_reset[1:] == [expected]


@pytest.mark.parametrize("kind", list(ResetKind))
def test_after_a_reset_nothing_answers_until_it_is_enabled(
    card: Resettable, device: SimulatedDevice, kind: ResetKind
) -> None:
    device.slot.reset(kind)
    assert device.config_read(COMMAND, 2) == 0
    assert device.read(0, 0) == 0xFFFF_FFFF
    device.write(0, 0, 0xFFF)
    device.enumerate()
    assert device.read(0, 0) & 0xF == 5


@pytest.mark.parametrize(("kind", "kept"), [(ResetKind.HOT, True), (ResetKind.POWER_ON, False)])
def test_error_registers_keep_their_values_unless_power_was_lost(
    device: SimulatedDevice, kind: ResetKind, kept: bool
) -> None:
    mask = 0x100 + 8
    before = device.config_read(mask)
    device.config_write(mask, before | 1 << 20)
    device.slot.reset(kind)
    assert device.config_read(mask) == (before | 1 << 20 if kept else before)


def test_the_driver_resets_the_function_with_flr(card: Resettable, device: SimulatedDevice) -> None:
    device.config_write(INTERRUPT_LINE, 0x42, 1)
    device.write(0, 0, 0xFFF)
    initiate_flr(device)
    assert card.resets[1:] == [ResetKind.FLR]
    assert device.config_read(INTERRUPT_LINE, 1) == 0
    assert device.config_read(device.find_capability(PCI_EXPRESS) + 8, 2) & FLR == 0
    device.enumerate()
    assert device.read(0, 0) == 0xFF5


def test_flr_leaves_the_payload_size_of_the_link(device: SimulatedDevice) -> None:
    control = device.find_capability(PCI_EXPRESS) + 8
    payload_256 = 1 << 5
    device.config_write(control, payload_256, 2)
    device.config_write(control, payload_256 | FLR, 2)
    assert device.config_read(control, 2) & 0xE0 == payload_256
    device.slot.reset(ResetKind.HOT)
    assert device.config_read(control, 2) & 0xE0 == 0


def test_a_card_without_flr_ignores_it(simulated_bus: SimulatedBus) -> None:
    card = NoFlr()
    device = simulated_bus.plug(card)[0]
    device.config_write(INTERRUPT_LINE, 0x42, 1)
    initiate_flr(device)
    assert card.resets[1:] == []
    assert device.config_read(INTERRUPT_LINE, 1) == 0x42


# Power states.


def test_a_sleeping_function_answers_configuration_only(
    card: Resettable, device: SimulatedDevice
) -> None:
    device.write(0, 0, 0xFFF)
    set_power(device, D3_HOT)
    assert card.states == [PowerState.D3_HOT]
    assert device.read(0, 0) == 0xFFFF_FFFF
    assert device.read_block(0, 0x1000, 2) == b"\xff\xff"
    assert device.config_read(0) == 0x0300_1DED


def test_waking_up_without_a_soft_reset_keeps_everything(
    card: Resettable, device: SimulatedDevice
) -> None:
    device.write(0, 0, 0xFFF)
    set_power(device, D3_HOT)
    set_power(device, D0)
    assert card.states == [PowerState.D3_HOT, PowerState.D0]
    assert card.resets[1:] == []
    assert device.read(0, 0) == 0xFFF


def test_waking_up_with_a_soft_reset_starts_anew(simulated_bus: SimulatedBus) -> None:
    card = SoftReset()
    device = simulated_bus.plug(card)[0]
    device.write(0, 0, 0xFFF)
    set_power(device, D3_HOT)
    set_power(device, D0)
    assert card.resets[1:] == [ResetKind.FLR]
    assert device.config_read(COMMAND, 2) == 0
    device.enumerate()
    assert device.read(0, 0) & 0xF == 5


def test_a_power_state_that_the_card_has_not_changes_nothing(
    card: Resettable, device: SimulatedDevice
) -> None:
    set_power(device, D1)
    assert card.states == []
    assert device.read(0, 0) == 0x555


def test_memory_access_can_be_switched_off(card: Resettable, device: SimulatedDevice) -> None:
    device.config_write(COMMAND, 0, 2)
    device.write(0, 0, 0xFFF)
    device.write_block(0, 0x1000, b"no")
    assert device.read(0, 0) == 0xFFFF_FFFF
    assert card.bar0.mixed.value == 0x555
    assert bytes(card.bar0.memory.view[:2]) == bytes(2)
