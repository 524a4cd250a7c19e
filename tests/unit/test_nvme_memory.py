"""The host's memory is used for as long as the host allows, and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.nvme_driver import FATAL, NvmeDriver

from softcard.bus.simulated import DmaBuffer
from softcard.cards.nvme import Nvme
from softcard.model.link import ResetKind
from softcard.model.options import Size

WRITE, READ = 1, 2
TRANSFER_ERROR = 4
FUA = 1 << 30
PAGE = 4096


@pytest.fixture(autouse=True)
def memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each buffer is an object that knows whether it is in use, and not a part of a file."""
    monkeypatch.setattr(
        "softcard.bus.simulated._MemoryFile.allocate",
        lambda self, size: (memoryview(bytearray(size)), 0),
    )


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("8M")), strict=False)
    driver.create_queue()
    yield driver
    assert not driver.card.endpoint.errors
    driver.close()


def assert_unused(buffer: DmaBuffer) -> None:
    """Nobody holds a view of memory that was freed: the bus could unmap it."""
    memory = buffer.view.obj
    assert isinstance(memory, bytearray)
    buffer.view.release()
    memory.append(0)


@pytest.mark.parametrize("opcode", [READ, WRITE])
@pytest.mark.parametrize("length", [512, PAGE, 2 * PAGE, 16 * PAGE])
def test_memory_that_was_used_is_let_go(driver: NvmeDriver, opcode: int, length: int) -> None:
    buffer = driver.buffer(length)
    fields = driver.prps(buffer)
    for _ in range(3):
        assert driver.io(opcode, 0, length // 512, **fields).status == 0
    driver.bus.free(buffer)
    assert_unused(buffer)


def test_commands_on_their_way_fail_and_touch_nothing(driver: NvmeDriver) -> None:
    driver.write(0, b"\x55" * PAGE)
    buffer, other = driver.buffer(PAGE), driver.buffer(PAGE)
    for address in (buffer.address, other.address) * 4:
        driver.push(READ, 1, nsid=1, prp1=address, dw12=7, ring=False)
    driver.ring_sq(1, driver.queues[1].tail - 4)
    assert [c.status for c in driver.reap(1)] == [0] * 4
    buffer.view[:] = bytes(PAGE)
    driver.bus.free(buffer)
    driver.ring_sq(1, driver.queues[1].tail)
    assert [c.status for c in driver.reap(1)] == [TRANSFER_ERROR, 0] * 2
    assert not any(buffer.view)
    assert other.view[0] == 0x55
    assert_unused(buffer)


def test_the_middle_of_a_transfer_may_be_missing(driver: NvmeDriver) -> None:
    parts = [driver.buffer(PAGE) for _ in range(4)]
    entries = driver.bus.alloc(PAGE)
    entries.view.cast("Q")[:3] = memoryview(
        b"".join(part.address.to_bytes(8, "little") for part in parts[1:])
    ).cast("Q")
    fields = {"prp1": parts[0].address, "prp2": entries.address}
    driver.write(0, b"\x66" * 4 * PAGE)
    assert driver.io(READ, 0, 32, **fields).status == 0
    for part in parts:
        part.view[:] = bytes(PAGE)
    driver.bus.free(parts[2])
    assert driver.io(READ, 0, 32, **fields).status == TRANSFER_ERROR
    assert not any(any(part.view) for part in parts), "all or nothing"
    assert_unused(parts[2])


def test_a_list_may_be_missing(driver: NvmeDriver) -> None:
    buffer = driver.buffer(4 * PAGE)
    fields = driver.prps(buffer)
    assert driver.io(READ, 0, 32, **fields).status == 0
    (entries,) = [b for b in driver.bus._buffers if b.address == fields["prp2"]]
    driver.bus.free(entries)
    assert driver.io(READ, 0, 32, **fields).status == TRANSFER_ERROR
    assert_unused(entries)


def test_memory_may_come_back_as_other_memory(driver: NvmeDriver) -> None:
    driver.write(0, b"\x77" * PAGE)
    buffer = driver.buffer(PAGE)
    assert driver.io(READ, 0, 8, prp1=buffer.address).status == 0
    driver.bus.free(buffer)
    again = DmaBuffer(buffer.address, memoryview(bytearray(PAGE)))
    driver.bus._buffers.append(again)
    driver.device.link.memory_added(again.address, PAGE)
    assert driver.io(READ, 0, 8, prp1=again.address).status == 0
    assert bytes(again.view) == b"\x77" * PAGE
    assert_unused(buffer)


def test_a_command_that_waits_for_the_disk_fails(tmp_path: Path) -> None:
    driver = NvmeDriver(Nvme(size=Size("8M"), file=tmp_path / "disk"), strict=False)
    driver.create_queue()
    driver.write(0, b"\x88" * PAGE)
    buffer = driver.buffer(PAGE)
    driver.push(READ, 1, nsid=1, prp1=buffer.address, dw12=7 | FUA)
    driver.bus.free(buffer)
    driver.bus.run_until(lambda: driver.card.controller.cqs[1].tail == 2)
    assert [c.status for c in driver.reap(1)] == [TRANSFER_ERROR]
    assert not any(buffer.view)
    assert_unused(buffer)
    driver.close()


@pytest.mark.parametrize("ring", ["sq", "cq"])
@pytest.mark.parametrize("qid", [0, 1])
def test_queues_in_memory_that_goes_away_are_let_go(
    driver: NvmeDriver, qid: int, ring: str
) -> None:
    buffer = driver.buffer()
    assert driver.io(READ, 0, 8, prp1=buffer.address).status == 0
    queue = driver.queues.pop(qid)
    freed = queue.sq if ring == "sq" else queue.cq
    before = bytes(freed.view)
    driver.bus.free(freed)
    driver.ring_sq(1, 2)
    assert driver.status & FATAL
    assert bytes(freed.view) == before
    assert_unused(freed)


@pytest.mark.parametrize("how", ["disable", "reset", "unplug"])
def test_a_controller_that_is_off_holds_no_memory(driver: NvmeDriver, how: str) -> None:
    buffer = driver.buffer(4 * PAGE)
    assert driver.io(READ, 0, 32, **driver.prps(buffer)).status == 0
    queues = driver.queues
    if how == "disable":
        driver.disable()
    elif how == "reset":
        driver.device.link.reset(ResetKind.HOT)
    else:
        driver.slot.unplug()
        driver.slot = driver.bus.plug(Nvme(size=Size("1M")))
    for used in (buffer, *(b for queue in queues.values() for b in (queue.sq, queue.cq))):
        driver.bus.free(used)
        assert_unused(used)
