"""What happens when a card's own code fails: the driver gets all-ones, the author a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from softcard import Bar, Card, Register, ResetKind
from softcard.bus.simulated import SimulatedBus, SimulatedDevice


class Clumsy(Card):
    vendor_id, device_id = 0x1DED, 0x0600

    class bar0(Bar, size=4096):
        broken = Register(0x00)
        wrong = Register(0x04, width=16)
        fine = Register(0x08)

    def __init__(self) -> None:
        super().__init__()
        self.answer: object = 0
        self.fail_on: list[str] = []

    @bar0.broken.on_read
    def read_broken(self) -> int:
        raise RuntimeError("the capacitor is dry")

    @bar0.broken.on_write
    def write_broken(self, value: int) -> None:
        raise KeyError(value)

    @bar0.wrong.on_read
    def read_wrong(self) -> int:
        return self.answer  # type: ignore[return-value]

    def on_reset(self, kind: ResetKind) -> None:
        if "reset" in self.fail_on:
            raise OSError("on_reset")

    def on_unplug(self) -> None:
        if "unplug" in self.fail_on:
            raise OSError("on_unplug")


@pytest.fixture
def bus() -> Iterator[SimulatedBus]:
    with SimulatedBus(strict=False) as bus:
        yield bus


@pytest.fixture
def card() -> Clumsy:
    return Clumsy()


@pytest.fixture
def device(bus: SimulatedBus, card: Clumsy) -> SimulatedDevice:
    return bus.plug(card)[0]


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [(0, 4, 0xFFFF_FFFF), (0, 8, 2**64 - 1), (1, 1, 0xFF), (2, 2, 0xFFFF)],
)
def test_a_read_whose_hook_raises_gives_all_ones(
    device: SimulatedDevice, offset: int, size: int, value: int
) -> None:
    assert device.read(0, offset, size) == value


def test_the_traceback_is_logged_with_what_the_driver_was_doing(
    device: SimulatedDevice, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        device.read(0, 0)
    assert "Clumsy raised RuntimeError during a read of 4 bytes at BAR 0 + 0x0 (broken)" in (
        caplog.text
    )
    assert "in read_broken" in caplog.text
    assert "the capacitor is dry" in caplog.text


def test_the_errors_are_kept(card: Clumsy, device: SimulatedDevice) -> None:
    device.read(0, 0)
    device.write(0, 0, 0x1234)
    first, second = card.endpoint.errors
    assert first.doing == "read of 4 bytes at BAR 0 + 0x0 (broken)"
    assert isinstance(first.exception, RuntimeError)
    assert second.doing == "write of 0x1234 at BAR 0 + 0x0 (broken)"
    assert isinstance(second.exception, KeyError)


def test_the_bus_stays_alive(card: Clumsy, device: SimulatedDevice) -> None:
    for _ in range(1000):
        device.read(0, 0)
    device.write(0, 8, 77)
    assert device.read(0, 8) == 77
    assert card.endpoint.error_count == 1000
    assert len(card.endpoint.errors) < 1000


@pytest.mark.parametrize("answer", [None, "text", -1, 0x1_0000])
def test_an_impossible_answer_of_a_hook_is_an_error(
    card: Clumsy, device: SimulatedDevice, answer: object
) -> None:
    card.answer = answer
    assert device.read(0, 4, 2) == 0xFFFF
    assert "read hook of register wrong" in str(card.endpoint.errors[-1].exception)


def test_errors_of_resets_and_unplugging_go_no_further(
    bus: SimulatedBus, card: Clumsy, device: SimulatedDevice
) -> None:
    card.fail_on = ["reset", "unplug"]
    device.slot.reset(ResetKind.HOT)
    device.slot.unplug()
    assert [error.doing for error in card.endpoint.errors] == ["hot reset", "unplug"]
    bus.plug(card)


def test_a_strict_bus_raises_them_in_the_test(simulated_bus: SimulatedBus, card: Clumsy) -> None:
    device = simulated_bus.plug(card)[0]
    with pytest.raises(RuntimeError, match="capacitor"):
        device.read(0, 0)
    with pytest.raises(KeyError):
        device.write(0, 0, 1)
    device.write(0, 8, 1)
    assert device.read(0, 8) == 1


def test_a_strict_bus_raises_after_very_many_errors_too(
    simulated_bus: SimulatedBus, card: Clumsy
) -> None:
    device = simulated_bus.plug(card)[0]
    for _ in range(300):
        with pytest.raises(RuntimeError):
            device.read(0, 0)


def test_a_card_that_fails_its_power_on_is_not_left_in_the_slot(
    simulated_bus: SimulatedBus, card: Clumsy
) -> None:
    card.fail_on = ["reset"]
    with pytest.raises(OSError, match="on_reset"):
        simulated_bus.plug(card)
    card.fail_on = []
    assert simulated_bus.plug(card)[0].read(0, 8) == 0


def test_the_errors_of_one_card_are_not_those_of_another(bus: SimulatedBus) -> None:
    first, second = Clumsy(), Clumsy()
    bus.plug(first)[0].read(0, 0)
    bus.plug(second)[0].read(0, 8)
    assert len(first.endpoint.errors) == 1
    assert not second.endpoint.errors
