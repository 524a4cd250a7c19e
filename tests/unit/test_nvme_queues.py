from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import FATAL, NvmeDriver

from softcard.cards.nvme import Nvme
from softcard.model.options import Size

DELETE_SQ, CREATE_SQ, DELETE_CQ, CREATE_CQ, ABORT, ASYNC = 0x00, 0x01, 0x04, 0x05, 0x08, 0x0C
FLUSH = 0x00
INVALID_FIELD, ABORT_REQUESTED, PRP_OFFSET = 0x02, 0x07, 0x13
CQ_INVALID, QUEUE_ID, QUEUE_SIZE, VECTOR, DELETION = 0x100, 0x101, 0x102, 0x108, 0x10C


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("1M"), queues=4, queue_entries=64))
    yield driver
    driver.close()


def cq(driver: NvmeDriver, **changes: int) -> int:
    fields = {"prp1": driver.bus.alloc(4096).address, "dw10": 1 | 15 << 16, "dw11": 3 | 1 << 16}
    return driver.run(CREATE_CQ, **fields | changes).status


def sq(driver: NvmeDriver, **changes: int) -> int:
    fields = {"prp1": driver.bus.alloc(4096).address, "dw10": 1 | 15 << 16, "dw11": 1 | 1 << 16}
    return driver.run(CREATE_SQ, **fields | changes).status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"dw10": 0 | 15 << 16}, QUEUE_ID),
        ({"dw10": 5 | 15 << 16}, QUEUE_ID),
        ({"dw10": 0xFFFF | 15 << 16}, QUEUE_ID),
        ({"dw10": 1 | 0 << 16}, QUEUE_SIZE),
        ({"dw10": 1 | 64 << 16}, QUEUE_SIZE),
        ({"dw10": 1 | 0xFFFF << 16}, QUEUE_SIZE),
        ({"dw11": 2 | 1 << 16}, INVALID_FIELD),
        ({"dw11": 3 | 5 << 16}, VECTOR),
        ({"dw11": 3 | 0xFFFF << 16}, VECTOR),
        ({"prp1": 0x1_0000_0004}, PRP_OFFSET),
    ],
)
def test_a_bad_completion_queue_is_refused(
    driver: NvmeDriver, changes: dict[str, int], status: int
) -> None:
    assert cq(driver, **changes) == status
    assert cq(driver) == 0
    assert cq(driver) == QUEUE_ID, "it exists"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"dw10": 0 | 15 << 16}, QUEUE_ID),
        ({"dw10": 5 | 15 << 16}, QUEUE_ID),
        ({"dw10": 1 | 0 << 16}, QUEUE_SIZE),
        ({"dw10": 1 | 64 << 16}, QUEUE_SIZE),
        ({"dw11": 0 | 1 << 16}, INVALID_FIELD),
        ({"dw11": 1 | 0 << 16}, QUEUE_ID),
        ({"dw11": 1 | 5 << 16}, QUEUE_ID),
        ({"dw11": 1 | 2 << 16}, CQ_INVALID),
        ({"prp1": 0x1_0000_0008}, PRP_OFFSET),
    ],
)
def test_a_bad_submission_queue_is_refused(
    driver: NvmeDriver, changes: dict[str, int], status: int
) -> None:
    assert cq(driver) == 0
    assert sq(driver, **changes) == status
    assert sq(driver) == 0
    assert sq(driver) == QUEUE_ID, "it exists"


def test_queues_need_the_entry_sizes_to_be_configured() -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), enable=False)
    driver.device.enable_msix()
    driver.enable(1)
    assert cq(driver) == QUEUE_SIZE
    driver.close()


def test_without_messages_there_is_one_vector() -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), enable=False)
    driver.enable()
    assert cq(driver) == VECTOR
    assert cq(driver, dw11=3) == 0
    driver.close()


@pytest.mark.parametrize("shared", [True, False])
def test_a_queue_outside_memory_is_refused(shared: bool) -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), strict=False, shared=shared)
    assert cq(driver, prp1=0x5000) == 0x04
    assert cq(driver) == 0
    assert sq(driver, prp1=0x5000) == 0x04
    assert sq(driver) == 0
    assert not driver.card.endpoint.errors
    driver.close()


def test_queues_are_deleted_in_their_order(driver: NvmeDriver) -> None:
    driver.create_queue()
    assert driver.run(DELETE_CQ, dw10=1).status == DELETION
    assert driver.run(DELETE_SQ, dw10=1).status == 0
    assert driver.run(DELETE_SQ, dw10=1).status == QUEUE_ID
    assert driver.run(DELETE_CQ, dw10=1).status == 0
    assert driver.run(DELETE_CQ, dw10=1).status == QUEUE_ID
    driver.create_queue()
    driver.ok(FLUSH, 1, nsid=1)


@pytest.mark.parametrize("opcode", [DELETE_SQ, DELETE_CQ])
def test_the_admin_queues_cannot_be_deleted(driver: NvmeDriver, opcode: int) -> None:
    assert driver.run(opcode, dw10=0).status == QUEUE_ID


def test_several_queues_may_complete_in_one(driver: NvmeDriver) -> None:
    first = driver.create_queue(1)
    second_sq = driver.bus.alloc(64 * 32)
    driver.ok(CREATE_SQ, prp1=second_sq.address, dw10=2 | 31 << 16, dw11=1 | 1 << 16)
    struct.pack_into("<BBHI", second_sq.view, 0, FLUSH, 0, 77, 1)
    driver.ring_sq(2, 1)
    driver.push(FLUSH, 1, nsid=1)
    done = driver.reap(1)
    assert [(c.queue, c.cid, c.sq_head) for c in done] == [(2, 77, 1), (1, 1, 1)]
    assert driver.run(DELETE_SQ, dw10=1).status == 0
    assert driver.run(DELETE_CQ, dw10=1).status == DELETION
    assert driver.run(DELETE_SQ, dw10=2).status == 0
    assert driver.run(DELETE_CQ, dw10=1).status == 0
    assert first.head == 2


def test_queues_go_round_many_times(driver: NvmeDriver) -> None:
    driver.create_queue(entries=3)
    for _ in range(20):
        assert driver.io(FLUSH).status == 0
        driver.push(FLUSH, 1, nsid=1, ring=False)
        driver.push(FLUSH, 1, nsid=1)
        assert len(driver.reap(1)) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_a_full_completion_queue_stops_its_submission_queue(shared: bool) -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), shared=shared)
    completions = driver.bus.alloc(16 * 4)
    driver.ok(CREATE_CQ, prp1=completions.address, dw10=1 | 3 << 16, dw11=3 | 1 << 16)
    queue = driver.create_queue(2)
    driver.ok(DELETE_SQ, dw10=2)
    driver.ok(CREATE_SQ, prp1=queue.sq.address, dw10=2 | 31 << 16, dw11=1 | 1 << 16)
    queue.tail = 0
    cids = [driver.push(FLUSH, 2, nsid=1, ring=False) for _ in range(10)]
    driver.ring_sq(2, queue.tail)
    taken: list[int] = []
    head, phase = 0, 1
    while len(taken) < 10:
        entries = [struct.unpack_from("<8xHHHH", completions.view, 16 * n) for n in range(4)]
        batch = []
        while entries[head][3] & 1 == phase:
            batch.append(entries[head][2])
            head = (head + 1) % 4
            phase ^= not head
        assert 1 <= len(batch) <= 3
        taken += batch
        driver.ring_cq(1, head)
    assert taken == cids
    driver.close()


def test_a_doorbell_of_no_queue_is_an_event(driver: NvmeDriver) -> None:
    driver.push(ASYNC)
    driver.ring_sq(3, 1)
    (event,) = driver.reap()
    assert event.result == 0x010000
    driver.log_page(1, 64)
    driver.push(ASYNC)
    driver.ring_cq(200, 1)
    (event,) = driver.reap()
    assert event.result == 0x010000


@pytest.mark.parametrize("doorbell", ["sq beyond", "sq overfull", "cq beyond", "cq past tail"])
def test_an_impossible_doorbell_value_is_an_event(driver: NvmeDriver, doorbell: str) -> None:
    driver.create_queue()
    driver.ok(FLUSH, 1, nsid=1)
    driver.push(ASYNC)
    match doorbell:
        case "sq beyond":
            driver.ring_sq(1, 32)
        case "sq overfull":
            # Room for all but one: the queue stands at 1, its completion queue is full at 31.
            for _ in range(40):
                driver.push(FLUSH, 1, nsid=1, ring=False)
            driver.queues[1].tail = 1
            driver.ring_sq(1, 0)
            driver.ring_sq(1, 2)
            driver.ring_sq(1, 1)
        case "cq beyond":
            driver.ring_cq(1, 0xFFFF)
        case "cq past tail":
            driver.ring_cq(1, 2)
    events = [c for c in driver.reap() if c.result]
    assert [c.result for c in events] == [0x010100]
    assert driver.log_page(1, 64)[8:12] == b"\xff\xff\xff\xff"
    if doorbell != "sq overfull":
        driver.ok(FLUSH, 1, nsid=1)


def test_a_completion_doorbell_that_repeats_itself_is_harmless(driver: NvmeDriver) -> None:
    driver.create_queue()
    driver.ok(FLUSH, 1, nsid=1)
    driver.push(ASYNC)
    driver.ring_cq(1, 1)
    driver.ring_sq(1, 1)
    assert driver.reap() == []


def test_an_event_request_can_be_aborted(driver: NvmeDriver) -> None:
    cid = driver.push(ASYNC)
    abort = driver.push(ABORT, dw10=0 | cid << 16)
    done = {c.cid: c for c in driver.reap()}
    assert done[cid].status == ABORT_REQUESTED
    assert (done[abort].status, done[abort].result) == (0, 0)


def test_what_is_not_there_is_not_aborted(driver: NvmeDriver) -> None:
    driver.create_queue()
    assert driver.ok(ABORT, dw10=0 | 999 << 16) == 1
    assert driver.ok(ABORT, dw10=1 | 1 << 16) == 1
    assert driver.run(ABORT, dw10=4).status == INVALID_FIELD


def test_a_queue_whose_memory_goes_away_is_fatal(driver: NvmeDriver) -> None:
    driver.create_queue()
    driver.bus.free(driver.queues[1].cq)
    assert driver.status & FATAL
    driver.ring_sq(1, 1)
    driver.disable()
    driver.enable()
    driver.create_queue()
    driver.ok(FLUSH, 1, nsid=1)


def test_a_doorbell_without_bus_mastering_is_fatal() -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), strict=False)
    driver.create_queue()
    driver.push(FLUSH, 1, nsid=1, ring=False)
    driver.device.config_write(0x04, 0x02, 2)
    before = bytes(driver.queues[1].cq.view)
    driver.ring_sq(1, 1)
    assert driver.status & FATAL
    assert bytes(driver.queues[1].cq.view) == before
    assert not driver.card.endpoint.errors
    driver.close()


def test_an_event_without_bus_mastering_writes_nothing() -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), strict=False)
    driver.set_feature(0x0B, 0xFF)
    driver.push(ASYNC)
    driver.device.config_write(0x04, 0x02, 2)
    before = bytes(driver.queues[0].cq.view)
    driver.card.temperature = 400
    assert bytes(driver.queues[0].cq.view) == before
    assert not driver.card.endpoint.errors
    driver.close()


def test_a_long_queue_leaves_time_for_registers(driver: NvmeDriver) -> None:
    """One doorbell must not keep the card busy for as long as the whole queue takes."""
    driver.create_queue(entries=64)
    buffer = driver.buffer(1 << 20)
    for _ in range(20):
        driver.push(0x02, 1, nsid=1, **driver.prps(buffer), dw12=2047, ring=False)
    driver.ring_sq(1, 20)
    first = len(driver.reap(1))
    assert 1 <= first < 20
    driver.bus.run_until(lambda: driver.card.controller.sqs[1].head == 20)
    assert first + len(driver.reap(1)) == 20
