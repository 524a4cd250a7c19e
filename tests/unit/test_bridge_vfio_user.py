"""A vfio-user server of ours, bridged to the simulated bus."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.bridged import (
    ADDRESS,
    ASSERT,
    COUNT,
    MEMORY,
    PBA,
    RELEASE,
    RESETS,
    SIGNAL,
    SUM,
    TABLE,
    VECTORS,
    Signals,
    bridged,
)

from softcard import DmaError, MsiX, PlugError, PowerManagement, ResetKind, UsageError
from softcard.bridge.vfio_user import VfioUserCard
from softcard.bridge.vfio_user.endpoint import RemoteEndpoint
from softcard.bus.simulated import SimulatedBus, SimulatedDevice
from softcard.bus.vfio_user import VfioUserServer
from softcard.cards.edu import Edu
from softcard.model.link import LinkFeatures

ALL_ONES = 0xFFFFFFFF
MSIX_ENABLE, MSIX_FUNCTION_MASK = 0x8000, 0x4000


@pytest.fixture
def card() -> Signals:
    return Signals()


@pytest.fixture
def served(
    card: Signals, tmp_path: Path, simulated_bus: SimulatedBus
) -> Iterator[tuple[SimulatedDevice, VfioUserServer]]:
    with bridged(card, tmp_path, simulated_bus) as both:
        yield both


@pytest.fixture
def device(served: tuple[SimulatedDevice, VfioUserServer]) -> SimulatedDevice:
    return served[0]


@pytest.fixture
def server(served: tuple[SimulatedDevice, VfioUserServer]) -> VfioUserServer:
    return served[1]


# Configuration space.


def test_a_driver_sees_the_ids_and_capabilities_of_the_card(
    device: SimulatedDevice, card: Signals
) -> None:
    own = card.config
    for offset in (0x00, 0x08, 0x2C, 0x34, 0x3C):
        assert device.config_read(offset) == own.read(offset, 4)
    for capability in own.capabilities:
        assert device.config_read(capability.base, 2) == own.read(capability.base, 2)
    assert device.config_read(0xFF0) == 0
    assert device.config_read(0x1000) == ALL_ONES


def test_the_bars_have_the_shapes_of_the_card(device: SimulatedDevice, card: Signals) -> None:
    bars = device.endpoint.function.config.bars
    assert bars == card.config.bars


def test_configuration_writes_reach_the_card(device: SimulatedDevice, card: Signals) -> None:
    device.config_write(0x04, 0x0406, 2)
    assert card.config.header.command.value == 0x0406
    assert device.config_read(0x04, 2) == 0x0406
    control = card.express.base + 8
    device.config_write(control, 0x5020, 2)
    assert card.express.device_control.value == device.config_read(control, 2) == 0x5020


# Registers and memory.


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_accesses_of_every_size_reach_the_registers(device: SimulatedDevice, size: int) -> None:
    value = 0x8877665544332211 & (1 << 8 * size) - 1
    device.write(0, ADDRESS, value, size)
    assert device.read(0, ADDRESS, size) == value


def test_a_posted_write_is_done_before_the_read_behind_it(device: SimulatedDevice) -> None:
    for value in range(500):
        device.write(2, 0, value)
        device.write(2, (1 << 20) - 4, value + 1)
        assert device.read(2, 0) == value
        assert device.read(2, (1 << 20) - 4) == value + 1


def test_more_posted_writes_than_the_socket_holds_are_all_done(
    device: SimulatedDevice, card: Signals
) -> None:
    device.write_block(2, 0, bytes(range(256)) * 4096)
    for value in range(5000):
        device.write(2, 0, value)
    assert device.read(2, 0) == 4999
    assert device.read(2, (1 << 20) - 4) == 0xFFFEFDFC


def test_a_block_longer_than_one_message_is_read_and_written(device: SimulatedDevice) -> None:
    data = bytearray(device.read_block(2, 0, 1 << 20))
    data[:4] = b"abcd"
    device.write_block(2, 0, bytes(data))
    assert device.read_block(2, 0, 1 << 20) == data


def test_plain_memory_is_the_same_on_both_sides(device: SimulatedDevice, card: Signals) -> None:
    device.write(0, MEMORY + 8, 0x12345678)
    assert bytes(card.bar0.memory.view[8:12]) == b"\x78\x56\x34\x12"
    card.bar0.memory.view[100:104] = b"card"
    assert device.read_block(0, MEMORY + 100, 4) == b"card"
    device.write_block(0, MEMORY + 0xFFC, b"last")
    assert bytes(card.bar0.memory.view[0xFFC:]) == b"last"


def test_plain_memory_is_offered_to_the_bus(device: SimulatedDevice, card: Signals) -> None:
    (shared,) = device.link.shared_ranges()
    assert (shared.bar, shared.offset, shared.size) == (0, MEMORY, 0x1000)
    os.pwrite(shared.fd, b"by the file", shared.fd_offset)
    assert bytes(card.bar0.memory.view[:11]) == b"by the file"


def test_a_block_across_registers_table_and_memory_has_all_of_them(
    device: SimulatedDevice, card: Signals
) -> None:
    card.bar0.memory.view[:4] = b"here"
    device.write(0, ADDRESS, 0x11223344)
    device.write(0, TABLE + 8, 0xDA7A)
    data = device.read_block(0, 0, 0x4000)
    assert data[ADDRESS : ADDRESS + 4] == b"\x44\x33\x22\x11"
    assert data[TABLE + 8 : TABLE + 10] == b"\x7a\xda"
    assert data[MEMORY : MEMORY + 4] == b"here"
    device.write_block(0, TABLE, bytes(0x2000) + b"gone")
    assert device.read(0, TABLE + 8) == 0
    assert bytes(card.bar0.memory.view[:4]) == b"gone"


def test_without_memory_enable_nothing_answers(device: SimulatedDevice) -> None:
    device.config_write(0x04, 0, 2)
    assert device.read(0, 0) == ALL_ONES
    assert device.read_block(0, MEMORY, 2) == b"\xff\xff"
    assert device.read(0, TABLE) == ALL_ONES


# DMA.


@pytest.mark.parametrize("shared", [True, False])
def test_a_register_read_may_wait_for_dma(
    device: SimulatedDevice, simulated_bus: SimulatedBus, shared: bool
) -> None:
    if not shared:
        device.features = LinkFeatures(bus="simulated", shared_memory=False)
    memory = simulated_bus.alloc(4096)
    memory.view[100:356] = bytes(range(256))
    device.write(0, ADDRESS, memory.address + 100, 8)
    assert device.read(0, SUM) == sum(range(256))
    device.write(0, COUNT, 200)
    assert device.read(0, COUNT) == 200
    assert memory.view[100:300] == bytes(range(200))


def test_memory_in_a_file_is_shared_and_other_memory_is_not(
    device: SimulatedDevice, card: Signals, simulated_bus: SimulatedBus
) -> None:
    first = simulated_bus.alloc(4096)
    card.dma.map(first.address, 4096)[:5] = b"first"
    assert bytes(first.view[:5]) == b"first"
    device.features = LinkFeatures(bus="simulated", shared_memory=False)
    second = simulated_bus.alloc(4096)
    with pytest.raises(DmaError, match="does not share"):
        card.dma.map(second.address, 4096)


def test_memory_from_before_the_card_was_plugged_in_can_be_reached(
    tmp_path: Path, simulated_bus: SimulatedBus
) -> None:
    memory = simulated_bus.alloc(4096)
    memory.view[:256] = b"\1" * 256
    with bridged(Signals(), tmp_path, simulated_bus) as (device, _):
        device.write(0, ADDRESS, memory.address, 8)
        assert device.read(0, SUM) == 256


def test_freed_memory_cannot_be_reached_any_more(
    device: SimulatedDevice, card: Signals, simulated_bus: SimulatedBus
) -> None:
    memory = simulated_bus.alloc(4096)
    view = card.dma.map(memory.address, 4096)
    simulated_bus.free(memory)
    with pytest.raises(DmaError, match="not mapped"):
        card.dma.map(memory.address, 4096)
    view[:4] = b"late"
    assert memory.view[:4] == bytes(4)


def test_all_memory_can_be_reached_on_a_bus_that_does_not_tell_of_it(
    tmp_path: Path, simulated_bus: SimulatedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = LinkFeatures(bus="simulated", shared_memory=False, announces_memory=False)
    monkeypatch.setattr(SimulatedDevice, "features", features, raising=False)
    monkeypatch.setattr(RemoteEndpoint, "memory_added", lambda self, address, size: None)
    memory = simulated_bus.alloc(4096)
    memory.view[:256] = b"\1" * 256
    with bridged(Signals(), tmp_path, simulated_bus) as (device, _):
        device.write(0, ADDRESS, memory.address, 8)
        assert device.read(0, SUM) == 256
        later = simulated_bus.alloc(4096)
        device.write(0, ADDRESS, later.address, 8)
        device.write(0, COUNT, 10)
        assert device.read(0, COUNT) == 10
        assert later.view[:10] == bytes(range(10))


def test_dma_by_messages_needs_bus_mastering_here_too(
    device: SimulatedDevice, card: Signals, simulated_bus: SimulatedBus
) -> None:
    device.features = LinkFeatures(bus="simulated", shared_memory=False)
    memory = simulated_bus.alloc(4096)
    device.write(0, ADDRESS, memory.address, 8)
    assert device.read(0, SUM) == 0
    # Behind the server's back, which therefore asks.
    device.endpoint.function.dma.enable(False)
    assert device.read(0, SUM) == ALL_ONES
    assert "refuses" in str(card.endpoint.errors[-1].exception)


# MSI-X, MSI and INTx.


def signalled(device: SimulatedDevice, vector: int) -> list[int]:
    """What interrupts come when the card signals a vector."""
    device.write(0, SIGNAL, vector)
    device.read(0, RESETS)
    return device.take_interrupts()


def msix_control(device: SimulatedDevice) -> int:
    return device.find_capability(MsiX.id) + 2


def test_msix_vectors_arrive_as_messages_of_the_table(device: SimulatedDevice) -> None:
    device.enable_msix()
    assert [signalled(device, vector) for vector in (0, 3, VECTORS - 1)] == [
        [0],
        [3],
        [VECTORS - 1],
    ]


def test_an_interrupt_comes_before_the_answer_to_the_read_behind_it(
    device: SimulatedDevice,
) -> None:
    device.enable_msix()
    for _ in range(200):
        assert signalled(device, 1) == [1]


def test_a_vector_that_is_signalled_twice_is_sent_twice(device: SimulatedDevice) -> None:
    device.enable_msix()
    device.write(0, SIGNAL, 2)
    assert signalled(device, 2) == [2, 2]


@pytest.mark.parametrize("vector", [0, VECTORS - 1])
def test_a_masked_vector_stays_pending_until_it_is_unmasked(
    device: SimulatedDevice, vector: int
) -> None:
    device.enable_msix()
    device.write(0, TABLE + 16 * vector + 12, 1)
    assert signalled(device, vector) == []
    assert device.read(0, PBA + vector // 32 * 4) == 1 << vector % 32
    device.write(0, TABLE + 16 * vector + 12, 0)
    assert device.take_interrupts() == [vector]
    assert device.read(0, PBA + vector // 32 * 4) == 0


@pytest.mark.parametrize("vector", [5, VECTORS - 1])
def test_a_vector_that_was_never_unmasked_is_not_lost(
    device: SimulatedDevice, simulated_bus: SimulatedBus, vector: int
) -> None:
    device.config_write(msix_control(device), MSIX_ENABLE, 2)
    assert signalled(device, vector) == []
    for index, word in enumerate((0xFEE00000, 0, 77, 0)):
        device.write(0, TABLE + 16 * vector + 4 * index, word)
    simulated_bus.run_until(lambda: device.interrupts)
    assert device.take_interrupts() == [77]


def test_the_function_mask_holds_back_every_vector(device: SimulatedDevice) -> None:
    device.enable_msix()
    device.config_write(msix_control(device), MSIX_ENABLE | MSIX_FUNCTION_MASK, 2)
    assert signalled(device, 4) == []
    device.config_write(msix_control(device), MSIX_ENABLE, 2)
    assert device.take_interrupts() == [4]


def test_the_table_is_not_the_servers(device: SimulatedDevice, card: Signals) -> None:
    device.enable_msix()
    assert card.msix.message(3) == (0, 0)
    assert device.read(0, TABLE + 16 * 3 + 8) == 3


def test_msi_sends_as_many_messages_as_were_granted(device: SimulatedDevice) -> None:
    device.enable_msi(4)
    assert [signalled(device, vector) for vector in range(4)] == [[0], [1], [2], [3]]
    device.enable_msi(2)
    assert signalled(device, 3) == [1]


def test_a_masked_msi_vector_stays_pending(device: SimulatedDevice, card: Signals) -> None:
    device.enable_msi(4)
    mask = device.find_capability(card.msi.id) + 0x10
    device.config_write(mask, 0b0100)
    assert signalled(device, 2) == []
    assert device.config_read(mask + 4) == 0b0100
    device.config_write(mask, 0)
    assert device.take_interrupts() == [2]


def test_the_line_follows_the_card_with_each_access(device: SimulatedDevice) -> None:
    for _ in range(3):
        device.write(0, ASSERT, 0)
        device.read(0, RESETS)
        assert device.intx_asserted
        device.read(0, RESETS)
        assert device.intx_asserted
        device.write(0, RELEASE, 0)
        device.read(0, RESETS)
        assert not device.intx_asserted


def test_the_line_is_asserted_without_an_access(
    device: SimulatedDevice, card: Signals, simulated_bus: SimulatedBus
) -> None:
    card.interrupt(0)
    simulated_bus.run_until(lambda: device.intx_asserted)


def test_a_line_that_is_still_asserted_comes_back_with_intx(device: SimulatedDevice) -> None:
    device.enable_msix()
    device.config_write(msix_control(device), 0, 2)
    device.write(0, ASSERT, 0)
    device.read(0, RESETS)
    assert device.intx_asserted
    assert device.take_interrupts() == []
    device.config_write(0x04, 0x0406, 2)
    assert not device.intx_asserted
    device.config_write(0x04, 0x0006, 2)
    assert device.intx_asserted


# Reset and power.


@pytest.mark.parametrize("kind", [ResetKind.HOT, ResetKind.POWER_ON])
def test_a_reset_reaches_the_card_and_clears_the_table(
    device: SimulatedDevice, card: Signals, kind: ResetKind
) -> None:
    device.enable_msix()
    before = card.reset_count
    device.slot.reset(kind)
    assert card.reset_count == before + 1
    assert not card.config.header.command.value
    device.enumerate()
    assert device.read(0, TABLE + 12) == 1
    assert not device.config_read(msix_control(device), 2) & MSIX_ENABLE
    device.write(0, ASSERT, 0)
    device.read(0, RESETS)
    assert device.intx_asserted


def test_a_function_level_reset_clears_both_sides(device: SimulatedDevice, card: Signals) -> None:
    device.enable_msix()
    before = card.reset_count
    device.config_write(card.express.base + 8, card.express.INITIATE_FLR, 2)
    assert card.reset_count == before + 1
    assert device.read(0, RESETS) == ALL_ONES
    device.enumerate()
    assert device.read(0, RESETS) == before + 1
    assert device.read(0, TABLE + 12) == 1
    device.enable_msix()
    assert signalled(device, 1) == [1]


def test_a_sleeping_card_does_not_answer_and_wakes_up_reset(
    device: SimulatedDevice, card: Signals
) -> None:
    pmcsr = device.find_capability(PowerManagement.id) + 4
    device.config_write(pmcsr, 3, 2)
    assert device.read(0, 0) == ALL_ONES
    assert card.power.pmcsr.power_state == 3
    before = card.reset_count
    device.config_write(pmcsr, 0, 2)
    assert card.reset_count > before
    assert device.config_read(pmcsr, 2) & 3 == card.power.pmcsr.power_state == 0


# The server's coming and going.


def test_a_server_that_hangs_up_is_a_card_that_was_pulled(
    device: SimulatedDevice, server: VfioUserServer, simulated_bus: SimulatedBus,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server.hang_up()
    simulated_bus.run_until(lambda: not device.present)
    assert device.read(0, 0) == device.config_read(0) == ALL_ONES
    assert "is lost: the peer has closed the connection" in caplog.text
    device.slot.unplug()


def test_it_may_hang_up_while_the_driver_reads(
    device: SimulatedDevice, server: VfioUserServer, card: Signals
) -> None:
    device.write(0, ADDRESS, 0x1234)
    server.hang_up()
    while device.present:
        assert device.read(0, ADDRESS) in (0x1234, ALL_ONES)
    assert device.link.read(0, 0, 4) == device.link.config_read(0, 4) == ALL_ONES
    device.link.write(0, 0, 4, 0)
    device.link.write_block(0, MEMORY, b"lost")
    assert device.link.read_block(0, MEMORY, 2) == b"\xff\xff"


def test_a_card_that_has_gone_can_be_plugged_in_again(
    device: SimulatedDevice, server: VfioUserServer, card: Signals, simulated_bus: SimulatedBus
) -> None:
    server.hang_up()
    simulated_bus.run_until(lambda: not device.present)
    bridge = device.slot.card
    device.slot.unplug()
    again = simulated_bus.plug(bridge)[0]
    again.write(0, MEMORY, 0x600D)
    assert bytes(card.bar0.memory.view[:2]) == b"\x0d\x60"
    again.enable_msix()
    assert signalled(again, 3) == [3]


def test_memory_of_a_connection_that_has_ended_leads_nowhere(
    device: SimulatedDevice, server: VfioUserServer, card: Signals, simulated_bus: SimulatedBus
) -> None:
    bridge = device.slot.card
    view = bridge.bars[0].memories[0].view[:8]
    view[:4] = b"live"
    server.hang_up()
    simulated_bus.run_until(lambda: not device.present)
    device.slot.unplug()
    simulated_bus.plug(bridge)
    view[:4] = b"late"
    assert bytes(card.bar0.memory.view[:4]) == b"live"


def test_unplugged_it_leaves_the_server_to_others(
    device: SimulatedDevice, server: VfioUserServer, simulated_bus: SimulatedBus
) -> None:
    device.slot.unplug()
    other = simulated_bus.plug(VfioUserCard(server.paths[0]))[0]
    assert other.read(0, ADDRESS) == 0


def test_another_card_at_the_same_socket_is_refused(
    tmp_path: Path, simulated_bus: SimulatedBus
) -> None:
    with bridged(Signals(), tmp_path, simulated_bus) as (device, _):
        bridge = device.slot.card
        device.slot.unplug()
    server = VfioUserServer(Edu(), tmp_path / "card")
    try:
        with pytest.raises(PlugError, match="another card"):
            simulated_bus.plug(bridge)
    finally:
        server.stop()


def test_an_address_may_be_text(tmp_path: Path, simulated_bus: SimulatedBus) -> None:
    server = VfioUserServer(Signals(), tmp_path / "card")
    try:
        device = simulated_bus.plug(VfioUserCard(str(tmp_path / "card")))[0]
        assert device.config_read(0, 2) == Signals.vendor_id
    finally:
        server.stop()
    with pytest.raises(UsageError, match="udp://"):
        VfioUserCard("udp://here:1")


def test_without_a_server_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PlugError, match=f"no card can be reached at {tmp_path}/none"):
        VfioUserCard(tmp_path / "none")


def test_nothing_is_left_open(tmp_path: Path) -> None:
    def plug_and_unplug() -> None:
        with SimulatedBus() as bus, bridged(Signals(), tmp_path, bus) as (device, _):
            device.enable_msix()
            device.slot.unplug()

    def descriptors() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    plug_and_unplug()
    before = descriptors()
    for _ in range(5):
        plug_and_unplug()
    assert descriptors() <= before


def test_a_warning_says_where_the_connection_ended(
    device: SimulatedDevice, server: VfioUserServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server.stop()
    while device.present:
        device.read(0, 0)
    (record,) = [r for r in caplog.records if r.name == "softcard.bridge"]
    assert str(server.paths[0]) in record.getMessage()
