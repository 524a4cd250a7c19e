"""The state of a function, saved and loaded."""

from __future__ import annotations

import json

import pytest

from softcard import Bar, Card, Memory, MsiX, Register
from softcard.bus.simulated import SimulatedBus
from softcard.cards.edu import Edu
from softcard.errors import StateError


class Box(Card):
    vendor_id, device_id = 0x1234, 0x5678
    migratable = True
    msix = MsiX(vectors=4, table=(0, 0x800), pba=(0, 0xC00))

    class bar0(Bar, size=0x4000):
        number = Register(0x00, reset=7)
        secret = Register(0x08, width=64)
        page = Memory(0x1000, 0x1000)

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def save_state(self) -> bytes:
        return b"box:" + str(len(self.told)).encode()

    def load_state(self, state: bytes) -> None:
        if not state.startswith(b"box:"):
            raise StateError("no box")
        self.told.append(state.decode())

    def on_suspend(self) -> None:
        self.told.append("suspend")

    def on_resume(self) -> None:
        self.told.append("resume")


def saved(bus: SimulatedBus) -> tuple[Box, bytes]:
    card = Box()
    device = bus.plug(card)[0]
    device.enable_msix()
    device.write(0, 0, 0x11223344)
    device.write(0, 8, 0x5566778899AABBCC, 8)
    device.write(0, 0x1010, 0xCAFE)
    card.link.suspend()
    return card, card.link.save_state()


def test_registers_memory_configuration_and_the_cards_own_part_survive(
    simulated_bus: SimulatedBus,
) -> None:
    first, state = saved(simulated_bus)
    second = Box()
    simulated_bus.plug(second)
    second.link.suspend()
    second.link.load_state(state)
    second.link.resume()
    assert second.bar0.number.value == 0x11223344
    assert second.bar0.secret.value == 0x5566778899AABBCC
    assert bytes(second.bar0.page.view[0x10:0x12]) == b"\xfe\xca"
    assert second.config.header.command.value == first.config.header.command.value
    assert second.msix.control.enable
    assert second.msix.table_region.words == first.msix.table_region.words
    assert second.told == ["suspend", "box:1", "resume"]
    assert second.link.read(0, 0, 4) == 0x11223344


def test_a_suspended_function_does_no_dma_and_its_interrupts_wait(
    simulated_bus: SimulatedBus,
) -> None:
    card = Box()
    device = simulated_bus.plug(card)[0]
    device.enable_msix()
    assert card.dma.allowed
    card.link.suspend()
    assert not card.dma.allowed
    card.interrupt(2)
    assert card.msix.pending(2)
    card.link.resume()
    assert card.dma.allowed
    assert not card.msix.pending(2)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: b"",
        lambda state: b"\xff",
        lambda state: b"[]",
        lambda state: b"{" * 100000,
        lambda state: state[:-10],
        lambda state: json.dumps({**json.loads(state), "format": 2}).encode(),
        lambda state: json.dumps({**json.loads(state), "own": "?"}).encode(),
        lambda state: json.dumps({**json.loads(state), "memory": {}}).encode(),
        lambda state: json.dumps({**json.loads(state), "bars": {"0": [1]}}).encode(),
        lambda state: json.dumps({**json.loads(state), "bars": {"0": [1 << 32, 0]}}).encode(),
        lambda state: json.dumps({**json.loads(state), "interrupts": {}}).encode(),
        lambda state: json.dumps(
            {
                **json.loads(state),
                "interrupts": {**json.loads(state)["interrupts"], "flags": [2] * 4},
            }
        ).encode(),
    ],
)
def test_what_is_no_state_changes_nothing(simulated_bus: SimulatedBus, spoil) -> None:  # type: ignore[no-untyped-def]
    _, state = saved(simulated_bus)
    second = Box()
    simulated_bus.plug(second)
    with pytest.raises(StateError):
        second.link.load_state(spoil(state))
    assert second.bar0.number.value == 7
    assert second.told == []


def test_the_state_of_another_card_is_refused(simulated_bus: SimulatedBus) -> None:
    _, state = saved(simulated_bus)
    other = Edu()
    simulated_bus.plug(other)
    with pytest.raises(StateError, match="another card"):
        other.link.load_state(state)


def test_edu_finishes_what_is_under_way(simulated_bus: SimulatedBus) -> None:
    card = Edu()
    device = simulated_bus.plug(card)[0]
    device.write(0, 0x08, 5)
    assert device.read(0, 0x20) & 1
    card.link.suspend()
    second = Edu()
    other = simulated_bus.plug(second)[0]
    second.link.load_state(card.link.save_state())
    second.link.resume()
    assert other.read(0, 0x20) & 1 == 0
    assert other.read(0, 0x08) == 120
