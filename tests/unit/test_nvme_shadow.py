"""Doorbells in memory, as Linux uses them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import FATAL, NvmeDriver

from softcard.bus.simulated import DmaBuffer
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

CONFIGURE, ASYNC, FLUSH, READ = 0x7C, 0x0C, 0, 2
INVALID_OPCODE, INVALID_FIELD, TRANSFER_ERROR = 1, 2, 4


class ShadowDriver(NvmeDriver):
    """Keeps the doorbells of I/O queues in memory, and writes a register only when it must.

    Attributes:
        rung: the registers that it wrote.
    """

    def __init__(self, card: Nvme, **options: bool) -> None:
        self.values: DmaBuffer | None = None
        self.rung: list[tuple[int, int]] = []
        super().__init__(card, **options)

    def configure(self) -> None:
        values, events = self.bus.alloc(4096), self.bus.alloc(4096)
        self.ok(CONFIGURE, prp1=values.address, prp2=events.address)
        self.words, self.events = values.view.cast("I"), events.view.cast("I")
        self.values = values

    def ring_sq(self, qid: int, tail: int) -> None:
        if qid and self.values is not None:
            self._store(2 * qid, tail)
        else:
            super().ring_sq(qid, tail)

    def ring_cq(self, qid: int, head: int) -> None:
        if qid and self.values is not None:
            self._store(2 * qid + 1, head)
        else:
            super().ring_cq(qid, head)

    def _store(self, index: int, value: int) -> None:
        """What Linux does (nvme_dbbuf_update_and_check_event)."""
        old, self.words[index] = self.words[index], value
        if (value - self.events[index] - 1) & 0xFFFF < (value - old) & 0xFFFF:
            self.rung.append((index, value))
            self.write32(0x1000 + 4 * index, value)


@pytest.fixture
def driver() -> Iterator[ShadowDriver]:
    driver = ShadowDriver(Nvme(size=Size("1M"), queues=4))
    driver.create_queue(1)
    driver.create_queue(2)
    driver.configure()
    yield driver
    assert not driver.card.endpoint.errors
    driver.close()


def polled(driver: ShadowDriver) -> bool:
    found = driver.card.controller.shadow.poll()
    driver.slot.loop.run_deferred()
    return found


def test_a_sleeping_card_is_woken(driver: ShadowDriver) -> None:
    driver.push(FLUSH, 1, nsid=1)
    assert driver.rung == [(2, 1)]
    assert len(driver.reap(1)) == 1


def test_a_polling_card_is_not_disturbed(driver: ShadowDriver) -> None:
    driver.card.controller.shadow.disarm()
    for _ in range(25):
        driver.push(FLUSH, 1, nsid=1)
        assert polled(driver)
        assert not polled(driver)
        assert len(driver.reap(1)) == 1
    assert driver.rung == []


def test_a_card_that_goes_to_sleep_sees_what_came_meanwhile(driver: ShadowDriver) -> None:
    shadow = driver.card.controller.shadow
    shadow.disarm()
    driver.push(FLUSH, 1, nsid=1)
    driver.push(FLUSH, 2, nsid=1)
    assert driver.rung == []
    assert shadow.arm()
    assert not shadow.arm()
    assert len(driver.reap(1)) == len(driver.reap(2)) == 1
    driver.push(FLUSH, 2, nsid=1)
    assert driver.rung == [(4, 2)]


def test_each_sleep_is_ended_once_by_each_queue(driver: ShadowDriver) -> None:
    shadow = driver.card.controller.shadow
    for n in range(100):
        shadow.disarm()
        driver.push(FLUSH, 1, nsid=1)
        polled(driver)
        driver.reap(1)
        assert not shadow.arm()
        driver.rung.clear()
        driver.push(FLUSH, 1, nsid=1)
        assert driver.rung == [(2, (2 * n + 2) % 32)]
        assert len(driver.reap(1)) == 1


def test_a_full_completion_queue_goes_on_when_heads_move(driver: ShadowDriver) -> None:
    shadow = driver.card.controller.shadow
    shadow.disarm()
    for _ in range(31):
        driver.push(FLUSH, 1, nsid=1)
    polled(driver)
    done = driver.reap(1, ring=False)
    assert len(done) == 31
    for _ in range(5):
        driver.push(FLUSH, 1, nsid=1)
    polled(driver)
    assert driver.reap(1, ring=False) == [], "no room"
    driver.rung.clear()
    driver.ring_cq(1, driver.queues[1].head)
    assert driver.rung == []
    assert polled(driver)
    assert len(driver.reap(1)) == 5


def test_a_full_completion_queue_wakes_a_sleeping_card(driver: ShadowDriver) -> None:
    shadow = driver.card.controller.shadow
    for _ in range(31):
        driver.push(FLUSH, 1, nsid=1)
    polled(driver)
    assert len(driver.reap(1, ring=False)) == 31
    driver.push(FLUSH, 1, nsid=1)
    polled(driver)
    assert not shadow.arm()
    driver.rung.clear()
    driver.ring_cq(1, driver.queues[1].head)
    assert driver.rung == [(3, 31)]
    assert len(driver.reap(1)) == 1


def test_a_register_that_comes_late_does_not_turn_time_back(driver: ShadowDriver) -> None:
    driver.card.controller.shadow.disarm()
    for _ in range(3):
        driver.push(FLUSH, 1, nsid=1)
    polled(driver)
    driver.write32(0x1008, 2)
    assert len(driver.reap(1)) == 3
    driver.push(FLUSH, 1, nsid=1)
    polled(driver)
    assert len(driver.reap(1)) == 1


def test_an_impossible_tail_in_memory_is_one_event(driver: ShadowDriver) -> None:
    driver.push(ASYNC)
    driver.words[2] = 77
    for _ in range(3):
        polled(driver)
    assert [c.result for c in driver.reap()] == [0x010100]
    driver.words[2] = 0
    polled(driver)
    driver.push(FLUSH, 1, nsid=1)
    polled(driver)
    assert len(driver.reap(1)) == 1


def test_a_queue_that_is_created_later_ignores_old_values(driver: ShadowDriver) -> None:
    for _ in range(5):
        driver.push(FLUSH, 1, nsid=1)
        polled(driver)
        driver.reap(1)
    driver.ok(0x00, dw10=1)
    driver.ok(0x04, dw10=1)
    driver.create_queue(1)
    polled(driver)
    driver.push(FLUSH, 1, nsid=1)
    polled(driver)
    assert len(driver.reap(1)) == 1


def test_the_admin_queue_keeps_its_registers(driver: ShadowDriver) -> None:
    driver.words[0] = 17
    polled(driver)
    assert len(driver.identify(1)) == 4096


def test_the_loop_polls(driver: ShadowDriver) -> None:
    driver.card.controller.shadow.disarm()
    driver.push(FLUSH, 1, nsid=1)
    driver.bus.run_for(0)
    assert len(driver.reap(1)) == 1


def test_a_reset_ends_it(driver: ShadowDriver) -> None:
    driver.disable()
    before, values = bytes(driver.events), driver.words
    driver.values = None
    driver.enable()
    driver.create_queue(1)
    values[2] = 9
    driver.bus.run_for(0.001)
    driver.ok(FLUSH, 1, nsid=1)
    assert bytes(driver.events) == before


def test_memory_that_goes_away_is_fatal(driver: ShadowDriver) -> None:
    assert driver.values is not None
    driver.bus.free(driver.values)
    assert driver.status & FATAL
    driver.values = None
    driver.disable()
    driver.enable()
    driver.create_queue(1)
    driver.ok(FLUSH, 1, nsid=1)


def test_without_bus_mastering_nothing_is_looked_at(driver: ShadowDriver) -> None:
    driver.card.controller.shadow.disarm()
    driver.push(FLUSH, 1, nsid=1)
    driver.device.config_write(0x04, 0x02, 2)
    assert not polled(driver)
    assert not driver.card.controller.shadow.arm()
    driver.device.config_write(0x04, 0x06, 2)
    assert polled(driver)


@pytest.mark.parametrize("which", ["prp1", "prp2"])
def test_misaligned_pages_are_an_invalid_field(which: str) -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")))
    pages = {name: driver.bus.alloc(4096).address for name in ("prp1", "prp2")}
    pages[which] += 8
    assert driver.run(CONFIGURE, **pages).status == INVALID_FIELD
    driver.close()


def test_pages_outside_memory_are_a_transfer_error() -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), strict=False)
    pages = {"prp1": driver.bus.alloc(4096).address, "prp2": 0x5000}
    assert driver.run(CONFIGURE, **pages).status == TRANSFER_ERROR
    assert not driver.card.controller.shadow.active
    driver.close()


@pytest.mark.parametrize("why", ["option", "no shared memory", "INTx"])
def test_it_is_not_offered_where_it_cannot_work(why: str) -> None:
    card = Nvme(size=Size("1M"), shadow_doorbells=why != "option")
    driver = NvmeDriver(card, shared=why != "no shared memory", enable=why != "INTx")
    if why == "INTx":
        driver.enable()
    pages = {name: driver.bus.alloc(4096).address for name in ("prp1", "prp2")}
    assert not driver.identify(1)[257] & 1
    assert driver.run(CONFIGURE, **pages).status == INVALID_OPCODE
    driver.close()
