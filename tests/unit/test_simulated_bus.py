"""The simulated bus does what firmware and a driver do."""

from __future__ import annotations

from itertools import pairwise

import pytest

from softcard import Bar, Card, Function, Memory, Msi, MsiX, PciExpress, PlugError, Register
from softcard.bus.simulated import SimulatedBus
from softcard.cards.printer import Printer

COMMAND, BAR0 = 0x04, 0x10


class FourBars(Card):
    vendor_id, device_id = 0x1DED, 0x0900
    express = PciExpress()
    msi = Msi(vectors=4, address64=False, masking=False)
    msix = MsiX(vectors=3, table=(4, 0), pba=(4, 0x800))

    class bar0(Bar, size=1 << 20):
        a = Register(0)

    class bar1(Bar, size=16):
        b = Register(0)

    class bar2(Bar, size=1 << 34, bits=64, prefetchable=True):
        c = Register((1 << 34) - 8, width=64)

    class bar4(Bar, size=4096, bits=64):
        d = Register(0x900)


class Second(Function):
    vendor_id, device_id = 0x1DED, 0x0902

    class bar0(Bar, size=4096):
        only = Register(0, reset=2)
        memory = Memory(0x800, 16)


class First(Card):
    vendor_id, device_id = 0x1DED, 0x0901
    more_functions = (Second,)

    class bar0(Bar, size=4096):
        only = Register(0, reset=1)


def test_bars_are_sized_placed_and_aligned(simulated_bus: SimulatedBus) -> None:
    cards = [FourBars(), FourBars()]
    for card in cards:
        simulated_bus.plug(card)
    places = []
    for card in cards:
        for number, bar in card.bars.items():
            address = card.config.bar_address(number)
            assert address
            assert address % bar.layout.size == 0
            assert bar.layout.bits == 64 or address + bar.layout.size <= 1 << 32
            places.append((address, address + bar.layout.size))
    places.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(places))


def test_memory_access_and_dma_are_enabled(simulated_bus: SimulatedBus) -> None:
    device = simulated_bus.plug(FourBars())[0]
    assert device.config_read(COMMAND, 2) == 0x06
    device.write(2, (1 << 34) - 8, 2**64 - 1, 8)
    assert device.read(2, (1 << 34) - 8, 8) == 2**64 - 1


def test_capabilities_are_found_by_their_id(simulated_bus: SimulatedBus) -> None:
    device = simulated_bus.plug(FourBars())[0]
    for capability_id in (0x10, 0x05, 0x11):
        at = device.find_capability(capability_id)
        assert device.config_read(at, 1) == capability_id
    assert device.find_capability(0x09) == 0


def test_interrupts_need_their_capability(simulated_bus: SimulatedBus) -> None:
    device = simulated_bus.plug(Printer())[0]
    with pytest.raises(PlugError, match="no MSI capability"):
        device.enable_msi()
    with pytest.raises(PlugError, match="no MSI-X capability"):
        device.enable_msix()


def test_both_kinds_of_messages_work_in_their_smallest_form(simulated_bus: SimulatedBus) -> None:
    card = FourBars()
    device = simulated_bus.plug(card)[0]
    device.enable_msi(4)
    card.interrupt(2)
    assert device.take_interrupts() == [2]
    device.enable_msix()
    card.interrupt(1)
    assert device.take_interrupts() == [1]


def test_every_function_of_a_card_is_a_device(simulated_bus: SimulatedBus) -> None:
    slot = simulated_bus.plug(First())
    assert [slot[n].config_read(2, 2) for n in (0, 1)] == [0x0901, 0x0902]
    assert [slot[n].config_read(0x0E, 1) for n in (0, 1)] == [0x80, 0x80]
    assert [slot[n].read(0, 0) for n in (0, 1)] == [1, 2]
    slot[1].write_block(0, 0x800, b"two")
    assert slot[0].read(0, 0x800) == 0


def test_functions_share_one_card_and_loop(simulated_bus: SimulatedBus) -> None:
    card = First()
    simulated_bus.plug(card)
    second = card.functions[1]
    assert second.card is card
    assert second.loop is card.loop


def test_an_unplugged_card_reads_as_all_ones(simulated_bus: SimulatedBus) -> None:
    slot = simulated_bus.plug(Printer())
    device = slot[0]
    slot.unplug()
    assert device.read(0, 0) == 0xFFFF_FFFF
    assert device.config_read(0, 2) == 0xFFFF
    assert device.read_block(0, 0, 3) == b"\xff" * 3
    device.write(0, 0, 1)
    device.write_block(0, 0, b"1")
    device.config_write(COMMAND, 0)


def test_an_empty_slot_cannot_be_unplugged(simulated_bus: SimulatedBus) -> None:
    slot = simulated_bus.plug(Printer())
    slot.unplug()
    with pytest.raises(PlugError, match="slot is empty"):
        slot.unplug()


def test_closing_the_bus_unplugs_every_card() -> None:
    cards = [Printer(), Printer()]
    with SimulatedBus() as bus:
        for card in cards:
            bus.plug(card)
    with SimulatedBus() as bus:
        for card in cards:
            bus.plug(card)


def test_dma_memory_is_zeroed_page_aligned_and_has_a_gap_behind_it(
    simulated_bus: SimulatedBus,
) -> None:
    buffers = [simulated_bus.alloc(size) for size in (1, 4096, 4097)]
    assert all(buffer.address % 4096 == 0 and not any(buffer.view) for buffer in buffers)
    for before, after in pairwise(buffers):
        assert after.address >= before.address + len(before.view) + 4096


def test_waiting_for_what_never_comes_ends(simulated_bus: SimulatedBus) -> None:
    with pytest.raises(TimeoutError, match="still false after 2"):
        simulated_bus.run_until(lambda: False, timeout=2)
    simulated_bus.plug(Printer())
    with pytest.raises(TimeoutError):
        simulated_bus.run_until(lambda: False, timeout=0.1)


def test_the_printer_prints(
    simulated_bus: SimulatedBus, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated_bus.plug(Printer())[0].write(0, 0, 0xCAFE)
    assert capsys.readouterr().out == "the driver wrote 0x0000cafe\n"
