"""A bus that shares the memory of queues and lists alone, and moves the data of commands."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import FATAL, PAGE, NvmeDriver

from softcard.bus.simulated import SimulatedDevice
from softcard.cards.nvme import Nvme
from softcard.cards.nvme.command import Command
from softcard.cards.nvme.status import Status
from softcard.model.options import Size

FLUSH, WRITE, READ = 0, 1, 2
CONFIGURE = 0x7C
TRANSFER_ERROR, OUT_OF_RANGE = 0x04, 0x80
BLOCKS = PAGE // 512


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each call moved."""
    counts: list[int] = []
    move = SimulatedDevice.dma_move

    def counted(device: SimulatedDevice, segments: int, count: int) -> None:
        counts.append(count)
        move(device, segments, count)

    monkeypatch.setattr(SimulatedDevice, "dma_move", counted)
    return counts


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("8M")), strict=False, shared=False, moves=True)
    driver.create_queue()
    yield driver
    assert not driver.card.endpoint.errors
    driver.close()


def pages(driver: NvmeDriver, *lbas: int, opcode: int = READ) -> list[memoryview]:
    """Push a command for a page of each; the doorbell is not rung."""
    views = []
    for lba in lbas:
        buffer = driver.buffer(PAGE)
        fields = {"nsid": 1, "prp1": buffer.address, "dw10": lba, "dw12": BLOCKS - 1}
        driver.push(opcode, 1, **fields, ring=False)
        views.append(buffer.view)
    return views


def ring(driver: NvmeDriver) -> list[int]:
    """Ring the doorbell; the statuses of what is completed."""
    driver.ring_sq(1, driver.queues[1].tail)
    return [c.status for c in driver.reap(1)]


@pytest.mark.parametrize("length", [512, PAGE, 2 * PAGE, 16 * PAGE, 128 << 10])
def test_data_of_any_length_arrive(driver: NvmeDriver, length: int) -> None:
    data = bytes(range(1, 252)) * (length // 251 + 1)
    driver.write(3, data[:length])
    assert driver.read(3, length // 512) == data[:length]
    assert driver.card.controller.health.units_written == length // 512
    assert driver.card.controller.health.units_read == length // 512


def test_a_buffer_may_begin_inside_a_page(driver: NvmeDriver) -> None:
    driver.write(0, bytes(range(256)) * 16)
    buffer, second = driver.buffer(PAGE), driver.buffer(PAGE)
    fields = {"prp1": buffer.address + 4, "prp2": second.address}
    assert driver.io(READ, 0, BLOCKS, **fields).status == 0
    assert buffer.view[4:] == (bytes(range(256)) * 16)[: PAGE - 4]
    assert bytes(second.view[:5]) == b"\xfc\xfd\xfe\xff\x00"


def test_commands_that_come_together_are_moved_by_one_call(
    driver: NvmeDriver, moved: list[int]
) -> None:
    for lba in range(4):
        driver.write(lba * BLOCKS, bytes([lba + 1]) * PAGE)
    moved.clear()
    views = pages(driver, *(lba * BLOCKS for lba in range(4)))
    assert ring(driver) == [0] * 4
    assert [view[0] for view in views] == [1, 2, 3, 4]
    assert moved == ([4] if Nvme.engine.moves else [])


def test_pages_that_follow_one_another_are_one_segment(
    driver: NvmeDriver, moved: list[int]
) -> None:
    driver.write(0, b"\x77" * (16 * PAGE))
    assert moved == ([1] if Nvme.engine.moves else [])


def test_what_the_driver_has_not_mapped_fails_alone(driver: NvmeDriver) -> None:
    for lba in range(5):
        driver.write(lba * BLOCKS, bytes([lba + 1]) * PAGE)
    first = pages(driver, 0, BLOCKS)
    gone = driver.buffer(PAGE)
    driver.push(READ, 1, nsid=1, prp1=gone.address, dw10=0, dw12=BLOCKS - 1, ring=False)
    driver.bus.free(gone)
    rest = pages(driver, 3 * BLOCKS, 4 * BLOCKS)
    assert ring(driver) == [0, 0, TRANSFER_ERROR, 0, 0]
    assert [view[0] for view in first + rest] == [1, 2, 4, 5]
    assert driver.card.controller.health.reads == 4


def test_commands_of_every_kind_are_completed_in_their_order(driver: NvmeDriver) -> None:
    (source,) = pages(driver, 0, opcode=WRITE)
    source[:] = b"\x11" * PAGE
    driver.push(FLUSH, 1, nsid=1, ring=False)
    (target,) = pages(driver, 0)
    pages(driver, 1 << 30)
    assert ring(driver) == [0, 0, 0, OUT_OF_RANGE]
    assert target[0] == 0x11


def test_a_full_completion_queue_is_waited_for(driver: NvmeDriver) -> None:
    driver.create_queue(2, entries=4)
    buffer = driver.buffer(PAGE)
    found = 0
    for _ in range(5):
        for _ in range(3):
            driver.push(READ, 2, nsid=1, prp1=buffer.address, dw12=BLOCKS - 1, ring=False)
        driver.ring_sq(2, driver.queues[2].tail)
        found += len(driver.reap(2, ring=False))
        driver.ring_cq(2, driver.queues[2].head)
    assert found == 15


def test_more_than_one_batch_of_large_commands_arrives(driver: NvmeDriver) -> None:
    data = bytes(range(256)) * (1 << 10)
    buffers = [driver.buffer(len(data), data) for _ in range(12)]
    for index, buffer in enumerate(buffers):
        driver.push(
            WRITE, 1, nsid=1, **driver.prps(buffer), dw10=index * len(data) // 512,
            dw12=len(data) // 512 - 1, ring=False,
        )  # fmt: skip
    driver.ring_sq(1, driver.queues[1].tail)
    driver.bus.run_for(0.01)
    assert [c.status for c in driver.reap(1)] == [0] * 12
    assert all(driver.read(n * len(data) // 512, 8) == data[:PAGE] for n in range(12))


def test_a_list_that_is_not_announced_is_read(driver: NvmeDriver) -> None:
    data = driver.buffer(3 * PAGE, b"\x42" * (3 * PAGE))
    entries = driver.bus.alloc(PAGE, announced=False)
    struct.pack_into("<2Q", entries.view, 0, data.address + PAGE, data.address + 2 * PAGE)
    fields = {"prp1": data.address, "prp2": entries.address}
    assert driver.io(WRITE, 0, 3 * BLOCKS, **fields).status == 0
    assert driver.read(0, 3 * BLOCKS) == b"\x42" * (3 * PAGE)


def test_queues_that_are_not_announced_work(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alloc = driver.bus.alloc
    monkeypatch.setattr(driver, "alloc", lambda size, **_: alloc(size, announced=False))
    driver.create_queue(2)
    for turn in range(40):
        driver.write(turn, bytes([turn]) * 512, qid=2)
        assert driver.read(turn, 1, qid=2)[0] == turn


def test_an_inspector_sees_every_command(driver: NvmeDriver) -> None:
    seen: list[int] = []

    def inspect(command: Command) -> Status | None:
        seen.append(command.opcode)
        return Status.INTERNAL_ERROR if command.opcode == WRITE else None

    driver.card.controller.inspector = inspect
    pages(driver, 0)
    pages(driver, 0, opcode=WRITE)
    assert ring(driver) == [0, int(Status.INTERNAL_ERROR)]
    assert seen == [READ, WRITE]


def test_a_queue_whose_memory_goes_away_is_fatal(driver: NvmeDriver) -> None:
    driver.bus.free(driver.queues[1].sq)
    assert driver.status & FATAL


def test_without_bus_mastering_nothing_is_moved(driver: NvmeDriver) -> None:
    driver.write(0, b"\x99" * PAGE)
    (view,) = pages(driver, 0)
    driver.device.config_write(4, 2, 2)
    assert ring(driver) == []
    assert not any(view)


def test_doorbells_in_memory_are_offered(driver: NvmeDriver) -> None:
    values, events = driver.alloc(PAGE), driver.alloc(PAGE)
    driver.ok(CONFIGURE, prp1=values.address, prp2=events.address)
    (view,) = pages(driver, 0)
    view[:] = b"\x01" * PAGE
    values.view.cast("I")[2] = driver.queues[1].tail
    driver.bus.run_for(0.01)
    assert [c.status for c in driver.reap(1)] == [0]
    assert not any(view)


def test_doorbells_in_memory_that_is_not_announced_are_refused(driver: NvmeDriver) -> None:
    values, events = (driver.bus.alloc(PAGE, announced=False) for _ in range(2))
    completion = driver.run(CONFIGURE, prp1=values.address, prp2=events.address)
    assert completion.status == TRANSFER_ERROR
