"""One call of the card, three ways to the driver, and nothing lost on any of them."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from softcard import Bar, Card, Msi, MsiX, PowerManagement, Register, ResetKind
from softcard.bus.simulated import SimulatedBus, SimulatedDevice

VECTORS = 8
TABLE, PBA = 0x1000, 0x2000
COMMAND, STATUS = 0x04, 0x06
MEMORY, BUS_MASTER, INTX_DISABLE = 0x2, 0x4, 0x400
MSIX_ENABLE, FUNCTION_MASK = 0x8000, 0x4000
INTERRUPT_STATUS = 0x8


class Everything(Card):
    """Has all three kinds of interrupt."""

    vendor_id, device_id = 0x1DED, 0x0200
    interrupt_pin = 1
    msi = Msi(vectors=VECTORS)
    msix = MsiX(vectors=VECTORS, table=(0, TABLE), pba=(0, PBA))

    class bar0(Bar, size=0x4000):
        nothing = Register(0)


class WithoutPin(Everything):
    interrupt_pin = 0


class OneMask(Everything):
    """MSI without masks."""

    msi = Msi(vectors=VECTORS, masking=False)


@pytest.fixture
def card() -> Everything:
    return Everything()


@pytest.fixture
def device(simulated_bus: SimulatedBus, card: Everything) -> SimulatedDevice:
    return simulated_bus.plug(card)[0]


def mask_vector(device: SimulatedDevice, vector: int, masked: bool) -> None:
    device.write(0, TABLE + 16 * vector + 12, masked)


def mask_function(device: SimulatedDevice, masked: bool) -> None:
    at = device.find_capability(0x11) + 2
    device.config_write(at, MSIX_ENABLE | (FUNCTION_MASK if masked else 0), 2)


def mask_msi(device: SimulatedDevice, mask: int) -> None:
    device.config_write(device.find_capability(0x05) + 0x10, mask)


def msi_pending(device: SimulatedDevice) -> int:
    return device.config_read(device.find_capability(0x05) + 0x14)


# MSI-X.


def test_each_msix_signal_is_one_message(card: Everything, device: SimulatedDevice) -> None:
    device.enable_msix()
    for vector in (0, 7, 3, 3):
        card.interrupt(vector)
    assert device.take_interrupts() == [0, 7, 3, 3]
    assert not device.intx_asserted


def test_a_masked_vector_waits_in_the_pending_bits(
    card: Everything, device: SimulatedDevice
) -> None:
    device.enable_msix()
    mask_vector(device, 3, True)
    card.interrupt(3)
    card.interrupt(4)
    assert device.take_interrupts() == [4]
    assert device.read(0, PBA, 8) == 1 << 3
    mask_vector(device, 3, False)
    assert device.take_interrupts() == [3]
    assert device.read(0, PBA, 8) == 0


def test_signals_of_a_masked_vector_merge_into_its_one_pending_bit(
    card: Everything, device: SimulatedDevice
) -> None:
    device.enable_msix()
    mask_vector(device, 3, True)
    for _ in range(3):
        card.interrupt(3)
    mask_vector(device, 3, False)
    assert device.take_interrupts() == [3]


def test_the_function_mask_holds_every_vector(card: Everything, device: SimulatedDevice) -> None:
    device.enable_msix()
    mask_function(device, True)
    mask_vector(device, 5, True)
    for vector in (1, 5, 6):
        card.interrupt(vector)
    assert device.take_interrupts() == []
    mask_function(device, False)
    assert device.take_interrupts() == [1, 6]
    assert device.read(0, PBA, 8) == 1 << 5


def test_unmasking_a_vector_under_the_function_mask_sends_nothing(
    card: Everything, device: SimulatedDevice
) -> None:
    device.enable_msix()
    mask_function(device, True)
    mask_vector(device, 2, True)
    card.interrupt(2)
    mask_vector(device, 2, False)
    assert device.take_interrupts() == []
    mask_function(device, False)
    assert device.take_interrupts() == [2]


def test_every_vector_is_masked_until_the_driver_unmasks_it(
    card: Everything, device: SimulatedDevice
) -> None:
    mask_function(device, False)
    card.interrupt(1)
    assert device.take_interrupts() == []
    assert device.read(0, PBA, 8) == 1 << 1


def test_a_message_goes_where_the_table_says(card: Everything, device: SimulatedDevice) -> None:
    device.enable_msix()
    memory = device.bus.alloc(4096)
    for index, word in enumerate((memory.address & 0xFFFF_FFFF, memory.address >> 32, 0xCAFE)):
        device.write(0, TABLE + 16 * 2 + 4 * index, word)
    card.interrupt(2)
    assert bytes(memory.view[:4]) == (0xCAFE).to_bytes(4, "little")
    assert device.take_interrupts() == []


def test_a_vector_that_does_not_exist_is_the_cards_error(
    card: Everything, device: SimulatedDevice
) -> None:
    for vector in (VECTORS, -1):
        with pytest.raises(ValueError, match=f"vector {vector} does not exist"):
            card.interrupt(vector)


# MSI.


def test_each_msi_signal_is_one_message(card: Everything, device: SimulatedDevice) -> None:
    device.enable_msi(VECTORS)
    for vector in (0, 7, 3, 3):
        card.interrupt(vector)
    assert device.take_interrupts() == [0, 7, 3, 3]
    assert not device.intx_asserted


@pytest.mark.parametrize(("granted", "expected"), [(1, [0, 0, 0]), (2, [0, 1, 1]), (4, [2, 1, 3])])
def test_a_driver_may_grant_fewer_msi_vectors(
    card: Everything, device: SimulatedDevice, granted: int, expected: list[int]
) -> None:
    device.enable_msi(granted)
    for vector in (2, 5, 7):
        card.interrupt(vector)
    assert device.take_interrupts() == expected


def test_a_masked_msi_vector_is_pending_until_it_is_unmasked(
    card: Everything, device: SimulatedDevice
) -> None:
    device.enable_msi(VECTORS)
    mask_msi(device, 0b1010)
    for vector in (1, 2, 3, 1):
        card.interrupt(vector)
    assert device.take_interrupts() == [2]
    assert msi_pending(device) == 0b1010
    mask_msi(device, 0b1000)
    assert device.take_interrupts() == [1]
    assert msi_pending(device) == 0b1000
    mask_msi(device, 0)
    assert device.take_interrupts() == [3]
    assert msi_pending(device) == 0


# INTx.


def test_intx_is_a_level_of_all_vectors(card: Everything, device: SimulatedDevice) -> None:
    card.interrupt(0)
    card.interrupt(5)
    card.interrupt(5)
    assert device.intx_asserted
    card.deassert(5)
    assert device.intx_asserted
    card.deassert(0)
    assert not device.intx_asserted
    assert device.take_interrupts() == []


def test_the_interrupt_status_bit_shows_the_cause_even_while_the_line_is_disabled(
    card: Everything, device: SimulatedDevice
) -> None:
    device.config_write(COMMAND, MEMORY | BUS_MASTER | INTX_DISABLE, 2)
    card.interrupt()
    assert not device.intx_asserted
    assert device.config_read(STATUS, 2) & INTERRUPT_STATUS
    device.config_write(COMMAND, MEMORY | BUS_MASTER, 2)
    assert device.intx_asserted
    card.deassert()
    assert not device.config_read(STATUS, 2) & INTERRUPT_STATUS


def test_intx_needs_no_bus_mastering(card: Everything, device: SimulatedDevice) -> None:
    device.config_write(COMMAND, MEMORY, 2)
    card.interrupt()
    assert device.intx_asserted


def test_a_card_without_a_pin_asserts_no_line(simulated_bus: SimulatedBus) -> None:
    card = WithoutPin()
    device = simulated_bus.plug(card)[0]
    card.interrupt()
    assert not device.intx_asserted
    assert not device.config_read(STATUS, 2) & INTERRUPT_STATUS


def test_enabling_messages_takes_the_line_back(card: Everything, device: SimulatedDevice) -> None:
    card.interrupt()
    device.enable_msi()
    assert not device.intx_asserted
    card.interrupt()
    assert device.take_interrupts() == [0]
    assert not device.intx_asserted


# Bus mastering.


@pytest.mark.parametrize("kind", ["MSI", "MSI-X"])
@pytest.mark.parametrize("card_class", [Everything, OneMask])
def test_a_message_waits_for_bus_mastering(
    simulated_bus: SimulatedBus, card_class: type[Everything], kind: str
) -> None:
    card = card_class()
    device = simulated_bus.plug(card)[0]
    if kind == "MSI":
        device.enable_msi(VECTORS)
    else:
        device.enable_msix()
    device.config_write(COMMAND, MEMORY, 2)
    card.interrupt(1)
    card.interrupt(2)
    assert device.take_interrupts() == []
    device.config_write(COMMAND, MEMORY | BUS_MASTER, 2)
    assert device.take_interrupts() == [1, 2]


# Resets, unplugging.


@pytest.mark.parametrize("kind", list(ResetKind))
def test_a_reset_forgets_what_was_pending(
    card: Everything, device: SimulatedDevice, kind: ResetKind
) -> None:
    device.enable_msix()
    mask_vector(device, 3, True)
    card.interrupt(3)
    device.slot.reset(kind)
    device.enumerate()
    assert device.read(0, PBA, 8) == 0
    device.enable_msix()
    assert device.take_interrupts() == []
    device.slot.reset(kind)
    device.enumerate()
    assert device.read(0, TABLE + 12) == 1


@pytest.mark.parametrize("kind", list(ResetKind))
def test_a_reset_releases_the_line(
    card: Everything, device: SimulatedDevice, kind: ResetKind
) -> None:
    card.interrupt()
    device.slot.reset(kind)
    assert not device.intx_asserted
    device.enumerate()
    card.interrupt()
    assert device.intx_asserted


def test_an_unplugged_card_interrupts_nobody(card: Everything, device: SimulatedDevice) -> None:
    device.enable_msix()
    device.slot.unplug()
    card.interrupt(1)
    card.deassert(1)
    assert device.take_interrupts() == []


def test_a_replugged_card_starts_with_no_line_asserted(
    simulated_bus: SimulatedBus, card: Everything
) -> None:
    device = simulated_bus.plug(card)[0]
    card.interrupt()
    device.slot.unplug()
    again = simulated_bus.plug(card)[0]
    assert not again.intx_asserted
    card.interrupt()
    assert again.intx_asserted


# Threads.


@pytest.fixture
def often_switching() -> Iterator[None]:
    """Let threads meet each other in more places."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("often_switching")
def test_no_message_of_several_threads_is_lost(card: Everything, device: SimulatedDevice) -> None:
    device.enable_msix()
    each = 2000

    def signal(vector: int) -> None:
        for _ in range(each):
            card.interrupt(vector)

    threads = [threading.Thread(target=signal, args=(vector,)) for vector in range(VECTORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(device.take_interrupts()) == dict.fromkeys(range(VECTORS), each)


@pytest.mark.usefixtures("often_switching")
def test_masking_while_another_thread_signals_neither_loses_the_last_nor_invents_any(
    card: Everything, device: SimulatedDevice
) -> None:
    device.enable_msix()
    rounds, signalled = 300, 0
    started, done = threading.Event(), threading.Event()

    def signal() -> None:
        nonlocal signalled
        while not done.is_set():
            card.interrupt(2)
            signalled += 1
            started.set()

    thread = threading.Thread(target=signal)
    thread.start()
    started.wait()
    for _ in range(rounds):
        mask_vector(device, 2, True)
        device.take_interrupts()
        before = signalled
        while signalled < before + 2:
            pass
        # One signal began and ended under the mask: the bit must be there, and no message.
        assert device.take_interrupts() in ([], [2])
        assert device.read(0, PBA, 8) == 1 << 2
        mask_vector(device, 2, False)
        assert 2 in device.take_interrupts()
    done.set()
    thread.join()
    assert device.read(0, PBA, 8) == 0


@pytest.mark.usefixtures("often_switching")
def test_two_threads_share_the_line(card: Everything, device: SimulatedDevice) -> None:
    def pulse(vector: int) -> None:
        for _ in range(500):
            card.interrupt(vector)
            assert device.intx_asserted
            card.deassert(vector)

    threads = [threading.Thread(target=pulse, args=(vector,)) for vector in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not device.intx_asserted


def test_a_line_ends_as_the_last_call_left_it_whichever_thread_is_slow(
    card: Everything, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asserting, gate = threading.Event(), threading.Event()
    levels = []

    def slow(asserted: bool) -> None:
        if asserted:
            asserting.set()
            gate.wait(5)
        levels.append(asserted)

    monkeypatch.setattr(device, "intx", slow)
    first = threading.Thread(target=card.interrupt)
    first.start()
    assert asserting.wait(5)
    second = threading.Thread(target=card.deassert)
    second.start()
    second.join(0.05)
    gate.set()
    first.join()
    second.join()
    assert levels == [True, False]


class Sleepy(Everything):
    power = PowerManagement()


def test_a_sleeping_card_asserts_no_line(simulated_bus: SimulatedBus) -> None:
    card = Sleepy()
    device = simulated_bus.plug(card)[0]
    at = device.find_capability(0x01) + 4
    card.interrupt()
    device.config_write(at, 3, 2)
    assert not device.intx_asserted
    device.config_write(at, 0, 2)
    assert device.intx_asserted


def test_a_sleeping_card_holds_its_messages_until_it_wakes(simulated_bus: SimulatedBus) -> None:
    card = Sleepy()
    device = simulated_bus.plug(card)[0]
    device.enable_msix()
    at = device.find_capability(0x01) + 4
    device.config_write(at, 3, 2)
    card.interrupt(1)
    assert device.take_interrupts() == []
    device.config_write(at, 0, 2)
    assert device.take_interrupts() == [1]
