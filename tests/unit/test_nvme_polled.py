"""Doorbell registers that are plain memory, which the card polls."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from tests.unit.nvme_driver import FATAL, NvmeDriver, Queue

from softcard.bridge.vfio_user import VfioUserCard
from softcard.bus.vfio_user import VfioUserServer
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

ASYNC, FLUSH, WRITE, READ = 0x0C, 0, 1, 2
DELETE_SQ, DELETE_CQ, CREATE_CQ = 0, 4, 5
BLOCK = 4096


class MappedDriver(NvmeDriver):
    """Has mapped the page of doorbells, as a bus offers it: its stores send no message."""

    def __init__(self, card: Nvme, **options: bool) -> None:
        (area,) = card.link.shared_ranges()
        assert (area.bar, area.offset, area.size) == (0, 0x1000, 0x1000)
        page = mmap.mmap(area.fd, area.size, offset=area.fd_offset)
        self.doorbells = memoryview(page).cast("I")
        super().__init__(card, **options)

    def ring_sq(self, qid: int, tail: int) -> None:
        self.doorbells[2 * qid] = tail
        self.bus.run_for(0)

    def ring_cq(self, qid: int, head: int) -> None:
        self.doorbells[2 * qid + 1] = head
        self.bus.run_for(0)


@pytest.fixture
def driver() -> Iterator[MappedDriver]:
    driver = MappedDriver(Nvme(size=Size("8M"), queues=4, polled_doorbells=True))
    driver.create_queue()
    yield driver
    assert not driver.card.endpoint.errors
    driver.close()


@pytest.mark.parametrize("length", [512, BLOCK, 3 * BLOCK, 128 << 10])
def test_what_was_written_is_read(driver: MappedDriver, length: int) -> None:
    data = bytes(range(256)) * (length // 256)
    for lba in range(50):
        driver.write(lba, data)
    assert driver.read(49, length // 512) == data


def test_queues_go_round_many_times(driver: MappedDriver) -> None:
    driver.create_queue(2, entries=3)
    buffer = driver.buffer()
    for _ in range(20):
        driver.push(READ, 2, nsid=1, prp1=buffer.address, dw12=7, ring=False)
        driver.push(READ, 2, nsid=1, prp1=buffer.address, dw12=7)
        assert [c.status for c in driver.reap(2)] == [0, 0]


def test_doorbells_may_come_as_messages_too(driver: MappedDriver) -> None:
    driver.push(FLUSH, 1, nsid=1, ring=False)
    driver.write32(0x1008, 1)
    driver.bus.run_for(0)
    assert len(driver.reap(1, ring=False)) == 1
    driver.write32(0x100C, 1)
    assert (driver.read32(0x1008), driver.read32(0x100C)) == (1, 1)
    assert driver.doorbells[2:4].tolist() == [1, 1]


@pytest.mark.parametrize("opcode", [FLUSH, READ])
def test_a_full_completion_queue_goes_on_when_heads_move(driver: MappedDriver, opcode: int) -> None:
    buffer = driver.buffer()
    completions = driver.bus.alloc(16 * 4)
    driver.ok(CREATE_CQ, prp1=completions.address, dw10=2 | 3 << 16, dw11=3 | 1 << 16)
    ring = driver.bus.alloc(64 * 32)
    driver.ok(1, prp1=ring.address, dw10=2 | 31 << 16, dw11=1 | 2 << 16)
    queue = driver.queues[2] = Queue(2, 32, ring, completions)
    cids = [
        driver.push(opcode, 2, nsid=1, prp1=buffer.address, dw12=7, ring=False) for _ in range(10)
    ]
    queue.size = 4
    taken: list[int] = []
    driver.ring_sq(2, 10)
    while len(taken) < 10:
        batch = driver.reap(2)
        assert 1 <= len(batch) <= 3
        taken += [c.cid for c in batch]
    assert taken == cids
    driver.bus.run_for(0)
    assert driver.reap(2) == []


@pytest.mark.parametrize("tail", [32, 77, 0xFFFF, 0x10000, 0xFFFFFFFF])
def test_an_impossible_tail_is_one_event(driver: MappedDriver, tail: int) -> None:
    driver.push(ASYNC)
    for _ in range(3):
        driver.ring_sq(1, tail)
    assert [c.result for c in driver.reap()] == [0x010100]
    driver.push(FLUSH, 1, nsid=1)
    assert len(driver.reap(1)) == 1


@pytest.mark.parametrize("head", [1, 31, 32, 0xFFFFFFFF])
def test_an_impossible_head_is_one_event(driver: MappedDriver, head: int) -> None:
    driver.push(ASYNC)
    driver.ring_cq(1, head)
    driver.push(FLUSH, 1, nsid=1)
    assert [c.result for c in driver.reap()] == [0x010100]
    assert len(driver.reap(1)) == 1


def test_a_new_queue_begins_at_zero_whatever_the_memory_held(driver: MappedDriver) -> None:
    for _ in range(5):
        driver.ok(FLUSH, 1, nsid=1)
    driver.ok(DELETE_SQ, dw10=1)
    driver.ok(DELETE_CQ, dw10=1)
    driver.doorbells[2] = driver.doorbells[3] = 1
    driver.create_queue(1)
    driver.bus.run_for(0)
    assert driver.reap(1) == []
    driver.ok(FLUSH, 1, nsid=1)


def test_a_reset_begins_anew(driver: MappedDriver) -> None:
    driver.ok(FLUSH, 1, nsid=1)
    driver.disable()
    driver.doorbells[0] = 5
    driver.bus.run_for(0)
    driver.enable()
    driver.create_queue(1)
    driver.ok(FLUSH, 1, nsid=1)


def test_without_bus_mastering_nothing_is_looked_at(driver: MappedDriver) -> None:
    driver.device.config_write(0x04, 0x02, 2)
    driver.push(FLUSH, 1, nsid=1)
    assert driver.reap(1) == []
    assert not driver.status & FATAL
    driver.device.config_write(0x04, 0x06, 2)
    driver.bus.run_for(0)
    assert len(driver.reap(1)) == 1


def test_intx_is_released_when_completions_are_taken() -> None:
    driver = MappedDriver(Nvme(size=Size("1M"), polled_doorbells=True), enable=False)
    driver.enable()
    driver.create_queue(1, vector=0)
    assert not driver.device.intx_asserted
    driver.push(FLUSH, 1, nsid=1)
    assert driver.device.intx_asserted
    assert len(driver.reap(1)) == 1
    assert not driver.device.intx_asserted
    driver.close()


def test_each_batch_interrupts_once(driver: MappedDriver) -> None:
    buffer = driver.buffer()
    driver.ok(READ, 1, nsid=1, prp1=buffer.address, dw12=7)
    driver.device.take_interrupts()
    for n in range(20):
        driver.push(READ, 1, nsid=1, prp1=buffer.address, dw12=7, ring=n == 19)
    assert driver.device.take_interrupts() == [1]
    assert len(driver.reap(1)) == 20


def test_there_are_no_shadow_doorbells_beside(driver: MappedDriver) -> None:
    assert not driver.identify(1)[257] & 1


def test_without_the_option_the_doorbells_are_no_memory() -> None:
    card = Nvme(size=Size("1M"))
    assert not card.link.shared_ranges()
    card.close()


def test_stores_wake_a_card_that_naps(tmp_path: Path) -> None:
    """In another thread and in real time, behind a socket; nothing but stores tells it."""
    card = Nvme(size=Size("1M"), polled_doorbells=True)
    server = VfioUserServer(card, tmp_path / "card")
    driver = MappedDriver(cast(Nvme, VfioUserCard(tmp_path / "card")))
    driver.create_queue()
    driver.write(3, bytes(range(256)) * 16)
    assert driver.read(3, 8) == bytes(range(256)) * 16
    driver.slot.unplug()
    server.stop()
    assert not card.endpoint.errors
    card.close()
