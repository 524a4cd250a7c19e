"""A hook that sees every command, for traces and faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import NvmeDriver

from softcard.cards.nvme import Nvme, Status
from softcard.cards.nvme.command import Command
from softcard.model.options import Size

WRITE, READ, FLUSH, IDENTIFY = 1, 2, 0, 6


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("1M")))
    driver.create_queue()
    yield driver
    driver.close()


def test_it_sees_the_commands_of_all_queues_in_order(driver: NvmeDriver) -> None:
    seen: list[tuple[int, int, int, int]] = []
    driver.card.inspector = lambda c: seen.append((c.queue, c.opcode, c.slba, c.blocks))
    driver.write(7, bytes(range(256)) * 16)
    assert driver.read(7, 8) == bytes(range(256)) * 16
    driver.ok(FLUSH, 1, nsid=1)
    driver.identify(1)
    assert seen == [(1, WRITE, 7, 8), (1, READ, 7, 8), (1, FLUSH, 0, 1), (0, IDENTIFY, 1, 1)]
    driver.card.inspector = None
    driver.read(0, 8)
    assert len(seen) == 4


def test_a_status_is_what_the_host_gets(driver: NvmeDriver) -> None:
    driver.write(0, b"x" * 4096)
    bad = range(4, 6)

    def fail_some(command: Command) -> Status | None:
        return Status.UNRECOVERED_READ_ERROR if command.slba in bad else None

    driver.card.inspector = fail_some
    buffer = driver.buffer()
    for lba in range(8):
        driver.push(READ, 1, nsid=1, prp1=buffer.address, dw10=lba, dw12=7, ring=False)
    driver.ring_sq(1, driver.queues[1].tail)
    found = driver.reap(1)
    wanted = [Status.UNRECOVERED_READ_ERROR if lba in bad else 0 for lba in range(8)]
    assert [c.status for c in found] == wanted
    assert [c.sq_head for c in found] == list(range(2, 10))


def test_success_completes_a_command_that_does_nothing(driver: NvmeDriver) -> None:
    driver.write(0, b"old" + bytes(4093))
    driver.card.inspector = lambda c: Status.SUCCESS if c.opcode == WRITE else None
    driver.write(0, b"new" + bytes(4093))
    assert driver.read(0, 8)[:3] == b"old"


def test_an_exception_in_it_fails_the_command_and_no_other() -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), strict=False)
    driver.create_queue()
    nothing: list[None] = []
    driver.card.inspector = lambda c: nothing.pop() if c.opcode == READ else None
    buffer = driver.buffer()
    assert driver.io(READ, 0, 8, prp1=buffer.address).status == Status.INTERNAL_ERROR
    assert driver.io(WRITE, 0, 8, prp1=buffer.address).status == 0
    assert len(driver.card.endpoint.errors) == 1
    driver.close()
