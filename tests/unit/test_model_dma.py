"""DMA as a card's author uses it: checked, zero-copy, atomic."""

from __future__ import annotations

import ctypes
import threading

import pytest

from softcard import Bar, Card, DmaError, PowerManagement, Register, RegisterArray
from softcard.bus.simulated import DmaBuffer, SimulatedBus, SimulatedDevice
from softcard.model.link import SEGMENT, TO_BUS, LinkFeatures

COMMAND, MEMORY, BUS_MASTER = 0x04, 0x2, 0x4


class Copier(Card):
    vendor_id, device_id = 0x1DED, 0x0400
    power = PowerManagement()

    class bar0(Bar, size=4096):
        address = RegisterArray(Register(0, width=64), count=2)
        write_there = Register(0x10)
        write_carefully = Register(0x14)

    def __init__(self) -> None:
        super().__init__()
        self.removed: list[tuple[int, int]] = []
        self.refused: list[DmaError] = []

    @bar0.write_there.on_write
    def write_value(self, value: int) -> None:
        self.dma.write(self.bar0.address[0].value, value.to_bytes(4, "little"))

    @bar0.write_carefully.on_write
    def write_value_if_allowed(self, value: int) -> None:
        try:
            self.write_value(value)
        except DmaError as error:
            self.refused.append(error)

    def on_memory_removed(self, address: int, size: int) -> None:
        self.removed.append((address, size))


@pytest.fixture
def card() -> Copier:
    return Copier()


@pytest.fixture
def device(simulated_bus: SimulatedBus, card: Copier) -> SimulatedDevice:
    return simulated_bus.plug(card)[0]


@pytest.fixture
def memory(simulated_bus: SimulatedBus) -> DmaBuffer:
    return simulated_bus.alloc(4096)


def test_a_card_reads_and_writes_by_bus_address(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer
) -> None:
    memory.view[10:14] = b"ping"
    assert card.dma.read(memory.address + 10, 4) == b"ping"
    card.dma.write(memory.address + 4092, b"pong")
    assert bytes(memory.view[4092:]) == b"pong"


def test_a_map_is_the_memory_itself(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer
) -> None:
    view = card.dma.map(memory.address + 0x100, 16)
    assert len(view) == 16
    view[:4] = b"card"
    assert bytes(memory.view[0x100:0x104]) == b"card"
    memory.view[0x104] = 0x55
    assert view[4] == 0x55


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (-1, 4096), (0, 4097), (4096, 1), (4095, 2), (8192, 4)]
)
def test_dma_outside_what_the_test_mapped_raises(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer, offset: int, length: int
) -> None:
    address = memory.address + offset
    for access in (card.dma.read, card.dma.map):
        with pytest.raises(DmaError, match=f"{address:#x}") as caught:
            access(address, length)
        assert (caught.value.address, caught.value.length) == (address, length)
    with pytest.raises(DmaError):
        card.dma.write(address, bytes(length))


def test_dma_across_two_neighbouring_buffers_is_refused(
    card: Copier, device: SimulatedDevice, simulated_bus: SimulatedBus, memory: DmaBuffer
) -> None:
    following = simulated_bus.alloc(4096)
    with pytest.raises(DmaError):
        card.dma.read(memory.address, following.address + 1 - memory.address)


def test_a_fault_in_a_handler_raises_in_the_test_from_the_access_that_caused_it(
    card: Copier, device: SimulatedDevice
) -> None:
    device.write(0, 0, 0x1234_5000, 8)
    with pytest.raises(DmaError, match="0x12345000"):
        device.write(0, 0x10, 1)
    device.read(0, 0)


def test_a_fault_raises_in_the_test_even_when_the_card_caught_it(
    card: Copier, device: SimulatedDevice
) -> None:
    device.write(0, 0, 0x1234_5000, 8)
    with pytest.raises(DmaError, match="0x12345000"):
        device.write(0, 0x14, 1)
    assert len(card.refused) == 1
    assert device.bus.faults == card.refused


def test_a_fault_of_one_card_is_not_raised_again_by_another(simulated_bus: SimulatedBus) -> None:
    guilty, other = (simulated_bus.plug(Copier())[0] for _ in range(2))
    with pytest.raises(DmaError):
        guilty.write(0, 0x14, 1)
    other.write(0, 0, 1)


def test_without_bus_mastering_there_is_no_dma(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer
) -> None:
    device.config_write(COMMAND, MEMORY, 2)
    for call in (
        lambda: card.dma.read(memory.address, 4),
        lambda: card.dma.write(memory.address, b"no"),
        lambda: card.dma.map(memory.address, 4),
        lambda: card.dma.fetch_add(memory.address, 4, 1),
    ):
        with pytest.raises(DmaError, match="bus master"):
            call()
    assert not any(memory.view)
    device.config_write(COMMAND, MEMORY | BUS_MASTER, 2)
    card.dma.write(memory.address, b"yes")


def test_a_sleeping_card_does_no_dma(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer
) -> None:
    device.config_write(device.find_capability(0x01) + 4, 3, 2)
    with pytest.raises(DmaError):
        card.dma.read(memory.address, 4)


def test_an_unplugged_card_does_no_dma(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer
) -> None:
    with pytest.raises(DmaError, match="not plugged in"):
        Copier().dma.read(memory.address, 4)
    device.slot.unplug()
    with pytest.raises(DmaError, match="not plugged in"):
        card.dma.read(memory.address, 4)


def test_memory_that_was_freed_is_named_to_the_card_and_refused(
    card: Copier, device: SimulatedDevice, simulated_bus: SimulatedBus, memory: DmaBuffer
) -> None:
    simulated_bus.free(memory)
    assert card.removed == [(memory.address, 4096)]
    with pytest.raises(DmaError):
        card.dma.write(memory.address, b"late")


def test_memory_for_a_narrow_engine_is_below_its_limit(simulated_bus: SimulatedBus) -> None:
    for bits in (24, 28, 32):
        buffer = simulated_bus.alloc(8192, address_bits=bits)
        assert buffer.address + 8192 <= 1 << bits
    assert simulated_bus.alloc(1).address >= 1 << 32
    with pytest.raises(MemoryError):
        simulated_bus.alloc(1 << 24, address_bits=24)


# Atomics.


@pytest.mark.parametrize("size", [4, 8])
def test_fetch_add_wraps_and_returns_the_former_value(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer, size: int
) -> None:
    limit = 1 << 8 * size
    memory.view[8 : 8 + size] = (limit - 2).to_bytes(size, "little")
    memory.view[8 + size] = 0x77
    assert card.dma.fetch_add(memory.address + 8, size, 5) == limit - 2
    assert int.from_bytes(memory.view[8 : 8 + size], "little") == 3
    assert memory.view[8 + size] == 0x77


@pytest.mark.parametrize("size", [4, 8])
def test_swap_stores_and_returns_the_former_value(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer, size: int
) -> None:
    assert card.dma.swap(memory.address, size, 0x1122) == 0
    assert card.dma.swap(memory.address, size, 0x3344) == 0x1122


@pytest.mark.parametrize("size", [4, 8])
def test_compare_and_swap_stores_only_where_it_matches(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer, size: int
) -> None:
    assert card.dma.compare_and_swap(memory.address, size, 1, 5) == 0
    assert card.dma.compare_and_swap(memory.address, size, 0, 7) == 0
    assert card.dma.compare_and_swap(memory.address, size, 7, 9) == 7
    assert card.dma.swap(memory.address, size, 0) == 9


@pytest.mark.parametrize(("offset", "size"), [(0, 2), (0, 16), (2, 4), (4, 8)])
def test_an_atomic_of_another_size_or_alignment_is_refused(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer, offset: int, size: int
) -> None:
    with pytest.raises(DmaError, match="naturally aligned"):
        card.dma.fetch_add(memory.address + offset, size, 1)


def test_atomics_of_several_threads_lose_nothing(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer
) -> None:
    def add() -> None:
        for _ in range(1000):
            card.dma.fetch_add(memory.address, 8, 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert card.dma.fetch_add(memory.address, 8, 0) == 4000


def segments(*fields: tuple[int, int, int, int]) -> ctypes.Array[ctypes.c_char]:
    """Segments as `Dma.move` wants them, in memory that stays where it is."""
    return ctypes.create_string_buffer(b"".join(SEGMENT.pack(*each) for each in fields))


def test_many_segments_are_moved_by_one_call(
    simulated_bus: SimulatedBus, card: Copier, device: SimulatedDevice, memory: DmaBuffer
) -> None:
    device.features = LinkFeatures(bus="simulated", shared_memory=False, moves=True)
    own = ctypes.create_string_buffer(b"abcdefgh", 8)
    at = ctypes.addressof(own)
    table = segments((memory.address, at, 4, TO_BUS), (memory.address + 1, at + 6, 2, 0))
    card.dma.move(ctypes.addressof(table), 2)
    assert bytes(memory.view[:5]) == b"abcd\0"
    assert own.raw == b"abcdefbc"


def test_a_segment_that_is_not_allowed_ends_the_move(
    card: Copier, device: SimulatedDevice, memory: DmaBuffer
) -> None:
    device.features = LinkFeatures(bus="simulated", shared_memory=False, moves=True)
    own = ctypes.create_string_buffer(b"abcd", 4)
    at, end = ctypes.addressof(own), memory.address + 4096
    table = segments(
        (memory.address, at, 4, TO_BUS), (end - 2, at, 4, TO_BUS), (memory.address + 8, at, 4, 1)
    )
    with pytest.raises(DmaError) as raised:
        card.dma.move(ctypes.addressof(table), 3)
    assert (raised.value.address, raised.value.length, raised.value.done) == (end - 2, 4, 1)
    assert bytes(memory.view[:4]) == b"abcd"
    assert not any(memory.view[4:])
    device.config_write(COMMAND, MEMORY, 2)
    with pytest.raises(DmaError, match="bus master"):
        card.dma.move(ctypes.addressof(table), 3)


def test_only_what_is_announced_is_seen_where_a_bus_moves_memory(
    simulated_bus: SimulatedBus, card: Copier, device: SimulatedDevice
) -> None:
    device.features = LinkFeatures(bus="simulated", shared_memory=False, moves=True)
    told = simulated_bus.alloc(4096)
    untold = simulated_bus.alloc(4096, announced=False)
    view = card.dma.view(told.address + 8, 8)
    assert view is not None
    view[:] = b"12345678"
    assert bytes(told.view[8:16]) == b"12345678"
    assert card.dma.view(told.address + 4092, 8) is None
    assert card.dma.view(untold.address, 8) is None
    with pytest.raises(DmaError):
        card.dma.map(untold.address, 8)
