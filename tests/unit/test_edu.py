from __future__ import annotations

import math

import pytest

from softcard.bus.simulated import SimulatedBus, SimulatedDevice
from softcard.cards.edu import Edu
from softcard.errors import DmaError
from softcard.model.link import ResetKind

IDENTIFICATION, LIVENESS, FACTORIAL = 0x00, 0x04, 0x08
STATUS, INTERRUPT_STATUS, RAISE, ACKNOWLEDGE = 0x20, 0x24, 0x60, 0x64
SOURCE, DESTINATION, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
COMPUTING, INTERRUPT_WHEN_COMPUTED = 0x01, 0x80
START, TO_MEMORY, INTERRUPT_WHEN_COPIED = 0x1, 0x2, 0x4
BUFFER = 0x40000


@pytest.fixture
def edu(simulated_bus: SimulatedBus) -> SimulatedDevice:
    return simulated_bus.plug(Edu())[0]


def finished(edu: SimulatedDevice) -> int:
    """Wait for the factorial, and read it."""
    edu.bus.run_until(lambda: not edu.read(0, STATUS) & COMPUTING)
    return edu.read(0, FACTORIAL)


def copy(edu: SimulatedDevice, source: int, destination: int, count: int, command: int) -> None:
    """Run one DMA transfer to its end."""
    for register, value in ((SOURCE, source), (DESTINATION, destination), (COUNT, count)):
        edu.write(0, register, value, 8)
    edu.write(0, COMMAND, command | START)
    edu.bus.run_until(lambda: not edu.read(0, COMMAND) & START)


def test_it_has_the_ids_of_the_data_sheet(edu: SimulatedDevice) -> None:
    assert edu.config_read(0x00) == 0x11E8_1234
    assert edu.config_read(0x08, 1) == 0x10
    assert edu.read(0, IDENTIFICATION) == 0x0100_00ED


def test_the_identification_cannot_be_written(edu: SimulatedDevice) -> None:
    edu.write(0, IDENTIFICATION, 0)
    assert edu.read(0, IDENTIFICATION) == 0x0100_00ED


def test_liveness_reads_as_the_inverse_of_what_was_written(edu: SimulatedDevice) -> None:
    edu.write(0, LIVENESS, 0x1234_00FF)
    assert edu.read(0, LIVENESS) == 0xEDCB_FF00


@pytest.mark.parametrize("value", [0, 1, 5, 12, 13, 33, 34, 0xFFFF_FFFF])
def test_the_factorial_is_the_lower_32_bits(edu: SimulatedDevice, value: int) -> None:
    expected = math.factorial(value) % 2**32 if value < 1000 else 0
    edu.write(0, FACTORIAL, value)
    assert finished(edu) == expected


def test_the_factorial_is_computed_in_the_background(edu: SimulatedDevice) -> None:
    edu.write(0, FACTORIAL, 5)
    assert edu.read(0, STATUS) & COMPUTING
    edu.bus.run_for(1)
    assert not edu.read(0, STATUS) & COMPUTING


def test_a_value_written_during_a_computation_is_ignored(edu: SimulatedDevice) -> None:
    edu.write(0, FACTORIAL, 4)
    edu.write(0, FACTORIAL, 6)
    assert finished(edu) == 24
    edu.bus.run_for(1)
    assert edu.read(0, FACTORIAL) == 24


def test_only_the_interrupt_bit_of_the_status_can_be_written(edu: SimulatedDevice) -> None:
    edu.write(0, STATUS, 0xFFFF_FFFF)
    assert edu.read(0, STATUS) == INTERRUPT_WHEN_COMPUTED


def test_a_finished_factorial_interrupts_only_where_it_was_asked_to(edu: SimulatedDevice) -> None:
    edu.enable_msi()
    edu.write(0, FACTORIAL, 3)
    finished(edu)
    assert not edu.take_interrupts()
    edu.write(0, STATUS, INTERRUPT_WHEN_COMPUTED)
    edu.write(0, FACTORIAL, 3)
    finished(edu)
    assert edu.take_interrupts() == [0]
    assert edu.read(0, INTERRUPT_STATUS) == 0x001


def test_raised_bits_collect_in_the_interrupt_status(edu: SimulatedDevice) -> None:
    edu.enable_msi()
    edu.write(0, RAISE, 0x10)
    edu.write(0, RAISE, 0x03)
    assert edu.read(0, INTERRUPT_STATUS) == 0x13
    assert edu.take_interrupts() == [0, 0]
    assert edu.read(0, RAISE) == 0


def test_intx_is_released_when_every_bit_is_acknowledged(edu: SimulatedDevice) -> None:
    edu.write(0, RAISE, 0x03)
    assert edu.intx_asserted
    edu.write(0, ACKNOWLEDGE, 0x01)
    assert edu.intx_asserted
    assert edu.read(0, INTERRUPT_STATUS) == 0x02
    edu.write(0, ACKNOWLEDGE, 0x02)
    assert not edu.intx_asserted


def test_with_msi_the_line_stays_released(edu: SimulatedDevice) -> None:
    edu.enable_msi()
    edu.write(0, RAISE, 1)
    assert not edu.intx_asserted


def test_dma_copies_into_the_buffer_and_back(edu: SimulatedDevice) -> None:
    memory = edu.bus.alloc(4096, address_bits=28)
    memory.view[:100] = bytes(range(100))
    copy(edu, memory.address, BUFFER, 100, 0)
    assert edu.read_block(0, BUFFER, 100) == bytes(range(100))
    copy(edu, BUFFER, memory.address + 1000, 100, TO_MEMORY)
    assert memory.view[1000:1100] == bytes(range(100))
    assert memory.view[1100:1200] == bytes(100)


def test_dma_takes_time_and_then_interrupts(edu: SimulatedDevice) -> None:
    edu.enable_msi()
    memory = edu.bus.alloc(4096, address_bits=28)
    edu.write(0, SOURCE, memory.address, 8)
    edu.write(0, DESTINATION, BUFFER, 8)
    edu.write(0, COUNT, 4, 8)
    edu.write(0, COMMAND, START | INTERRUPT_WHEN_COPIED)
    assert edu.read(0, COMMAND) == START | INTERRUPT_WHEN_COPIED
    assert not edu.take_interrupts()
    edu.bus.run_for(1)
    assert edu.read(0, COMMAND) == INTERRUPT_WHEN_COPIED
    assert edu.take_interrupts() == [0]
    assert edu.read(0, INTERRUPT_STATUS) == 0x100


def test_the_whole_buffer_can_be_copied_and_no_byte_more(edu: SimulatedDevice) -> None:
    memory = edu.bus.alloc(8192, address_bits=28)
    copy(edu, memory.address, BUFFER, 4096, 0)
    copy(edu, BUFFER + 4095, memory.address, 1, TO_MEMORY)
    for start, count in ((BUFFER, 4097), (BUFFER + 4095, 2), (BUFFER - 1, 1), (0, 1)):
        with pytest.raises(DmaError, match="buffer"):
            copy(edu, start, memory.address, count, TO_MEMORY)
        with pytest.raises(DmaError, match="buffer"):
            copy(edu, memory.address, start, count, 0)


def test_a_failed_transfer_ends_too(edu: SimulatedDevice) -> None:
    with pytest.raises(DmaError, match="not mapped"):
        copy(edu, 0x1234, BUFFER, 4, INTERRUPT_WHEN_COPIED)
    assert not edu.read(0, COMMAND) & START
    assert edu.read(0, INTERRUPT_STATUS) == 0x100


def test_addresses_lose_the_bits_that_the_engine_does_not_drive(edu: SimulatedDevice) -> None:
    memory = edu.bus.alloc(4096, address_bits=28)
    memory.view[:4] = b"edu!"
    copy(edu, memory.address | 1 << 28, BUFFER, 4, 0)
    assert edu.read_block(0, BUFFER, 4) == b"edu!"


def test_a_wider_engine_reaches_all_memory(simulated_bus: SimulatedBus) -> None:
    edu = simulated_bus.plug(Edu(dma_mask=2**64 - 1))[0]
    memory = simulated_bus.alloc(4096)
    assert memory.address >= 1 << 32
    edu.write_block(0, BUFFER, b"high")
    copy(edu, BUFFER, memory.address, 4, TO_MEMORY)
    assert bytes(memory.view[:4]) == b"high"


@pytest.mark.parametrize("kind", [ResetKind.POWER_ON, ResetKind.HOT])
def test_a_reset_ends_what_is_under_way(edu: SimulatedDevice, kind: ResetKind) -> None:
    edu.write(0, STATUS, INTERRUPT_WHEN_COMPUTED)
    edu.write(0, FACTORIAL, 5)
    edu.write(0, COMMAND, START | INTERRUPT_WHEN_COPIED)
    edu.write(0, RAISE, 1)
    edu.slot.reset(kind)
    edu.enumerate()
    edu.bus.run_for(1)
    assert not edu.intx_asserted
    assert [edu.read(0, at) for at in (STATUS, FACTORIAL, INTERRUPT_STATUS, COMMAND)] == [0] * 4
