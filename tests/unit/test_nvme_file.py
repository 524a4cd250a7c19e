"""The card with a file behind it, and what goes wrong with files."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.unit.nvme_driver import CC, CSTS, ENABLE, FATAL, READY, NvmeDriver

from softcard.backend.file import FileStore
from softcard.cards.nvme import Nvme
from softcard.errors import UsageError
from softcard.model.link import ResetKind
from softcard.model.options import Size

FLUSH, WRITE, READ, WRITE_ZEROES, DSM, VERIFY = 0, 1, 2, 8, 9, 0x0C
CACHE = 6
FUA = 1 << 30
CONFLICT, SQ_DELETED, PROTECTED, CAPACITY, FORMATTING = 0x03, 0x08, 0x20, 0x81, 0x84
WRITE_FAULT, READ_ERROR = 0x280, 0x281
SIZE = 4 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


@pytest.fixture
def driver(file: Path) -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size(SIZE), file=file))
    driver.create_queue()
    yield driver
    driver.close()


class SlowDisk:
    """Holds every call of some methods of `FileStore` up until it is released."""

    def __init__(self, patch: pytest.MonkeyPatch, *methods: str) -> None:
        self.calls: list[str] = []
        self._gate = threading.Event()
        for name in methods:
            patch.setattr(FileStore, name, self._slow(name, getattr(FileStore, name)))

    def _slow(self, name: str, original: Callable[..., None]) -> Callable[..., None]:
        def slow(*args: object) -> None:
            self._gate.wait(30)
            self.calls.append(name)
            original(*args)

        return slow

    def release(self) -> None:
        self._gate.set()


def failing(number: int) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# What is promised of the data.


def test_the_file_holds_the_blocks(driver: NvmeDriver, file: Path) -> None:
    data = os.urandom(65536)
    driver.write(5, data)
    assert file.read_bytes()[5 * 512 :][:65536] == data
    assert driver.read(5, 128) == data


@pytest.mark.parametrize("shared", [True, False])
def test_random_transfers(file: Path, shared: bool) -> None:
    driver = NvmeDriver(Nvme(size=Size(SIZE), file=file), shared=shared)
    driver.create_queue()
    for length in (512, 4096, 4608, 1 << 20):
        data = os.urandom(length)
        driver.write(9, data)
        assert driver.read(9, length // 512) == data
    driver.close()


@pytest.mark.parametrize("how", ["flush", "fua", "no cache"])
def test_data_are_on_the_disk_when_the_driver_was_told_so(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(FileStore, "flush", lambda store: synced.append("flush"))
    buffer = driver.buffer()
    if how == "no cache":
        driver.set_feature(CACHE, 0)
        assert synced.pop() == "flush"
    assert driver.io(WRITE, dw12=7 | (FUA if how == "fua" else 0), prp1=buffer.address).status == 0
    assert bool(synced) == (how != "flush")
    driver.ok(FLUSH, 1, nsid=1)
    assert synced


def test_a_write_is_not_flushed_without_need(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStore, "flush", failing(errno.EIO))
    driver.write(0, bytes(4096))
    driver.read(0, 8)


def test_a_shutdown_flushes(driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch, "flush")
    driver.write32(CC, ENABLE | 1 << 14)
    assert driver.read32(CSTS) >> 2 & 3 == 1, "shutdown processing occurs"
    disk.release()
    driver.bus.run_until(lambda: driver.read32(CSTS) >> 2 & 3 == 2)
    assert disk.calls == ["flush"]


def test_discards_punch_holes(driver: NvmeDriver, file: Path) -> None:
    driver.write(0, b"x" * (1 << 20))
    driver.ok(FLUSH, 1, nsid=1)
    before = file.stat().st_blocks
    assert driver.io(WRITE_ZEROES, 0, 2048, dw12=2047 | 1 << 25).status == 0
    assert before - file.stat().st_blocks >= (1 << 20) // 512
    assert driver.read(0, 2048) == bytes(1 << 20)


def test_the_card_can_be_plugged_in_again(driver: NvmeDriver, file: Path) -> None:
    card = driver.card
    driver.write(0, b"kept" * 128)
    driver.slot.unplug()
    other = FileStore(file, None)
    other.close()
    again = NvmeDriver(card)
    again.create_queue()
    assert again.read(0, 1) == b"kept" * 128
    again.slot.unplug()
    driver.slot = driver.bus.plug(card)


def test_a_file_taken_by_another_card_meanwhile_is_reported(file: Path) -> None:
    card = Nvme(size=Size(SIZE), file=file)
    driver = NvmeDriver(card)
    driver.slot.unplug()
    other = Nvme(file=file)
    with pytest.raises(UsageError, match="in use"):
        NvmeDriver(card)
    other.close()


# A slow disk delays nothing but its own commands.


def test_registers_and_other_commands_do_not_wait_for_a_flush(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch, "flush")
    flush = driver.push(FLUSH, 1, nsid=1)
    assert driver.read32(CSTS) == READY
    driver.push(READ, 1, nsid=1, prp1=driver.buffer().address)
    assert len(driver.reap(1)) == 1
    disk.release()
    driver.bus.run_until(lambda: driver.card.controller.cqs[1].tail == 2)
    assert [c.cid for c in driver.reap(1)] == [flush]


def test_flushes_that_wait_together_are_one(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch, "flush")
    for _ in range(10):
        driver.push(FLUSH, 1, nsid=1)
    disk.release()
    driver.bus.run_until(lambda: driver.card.controller.cqs[1].tail == 10)
    assert len(driver.reap(1)) == 10
    assert len(disk.calls) <= 2


def test_a_queue_that_is_deleted_aborts_its_commands(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch, "flush")
    flush = driver.push(FLUSH, 1, nsid=1)
    driver.ok(0x00, dw10=1)
    assert [(c.cid, c.status, c.more) for c in driver.reap(1)] == [(flush, SQ_DELETED, False)]
    assert driver.log_page(1, 64) == bytes(64), "what the host asked for is no error"
    disk.release()
    driver.bus.run_for(0.01)
    driver.ok(0x04, dw10=1)
    driver.create_queue()
    driver.ok(FLUSH, 1, nsid=1)


def test_a_command_identifier_in_use_is_a_conflict(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch, "flush")
    driver.push(FLUSH, 1, nsid=1, cid=5)
    driver.push(FLUSH, 1, nsid=1, cid=5)
    assert [c.status for c in driver.reap(1)] == [CONFLICT]
    disk.release()
    driver.bus.run_until(lambda: driver.card.controller.cqs[1].tail == 2)
    assert [c.status for c in driver.reap(1)] == [0]


@pytest.mark.parametrize("kind", [None, *ResetKind])
def test_after_a_reset_the_controller_is_ready_when_the_disk_is(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch, kind: ResetKind | None
) -> None:
    """Else a discard from before the reset could erase what is written after it."""
    driver.write(0, b"x" * 4096)
    disk = SlowDisk(monkeypatch, "discard")
    driver.push(WRITE_ZEROES, 1, nsid=1, dw12=7 | 1 << 25)
    if kind is None:
        driver.disable()
    else:
        driver.slot.reset(kind)
        driver.device.enumerate()
        driver.device.enable_msix()
    timer = threading.Timer(0.2, disk.release)
    timer.start()
    driver.enable()
    assert disk.calls == ["discard"]
    driver.create_queue()
    assert driver.read(0, 8) == bytes(4096)
    timer.join()


def test_a_card_that_is_pulled_waits_for_the_disk(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch, "flush")
    driver.push(FLUSH, 1, nsid=1)
    timer = threading.Timer(0.1, disk.release)
    timer.start()
    driver.slot.unplug()
    assert disk.calls == ["flush"]
    driver.slot = driver.bus.plug(driver.card)
    timer.join()


def test_blocks_cannot_be_accessed_while_they_are_formatted(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch, "discard")
    driver.push(0x80, nsid=1, dw10=1)
    buffer = driver.buffer()
    assert driver.io(READ, prp1=buffer.address).status == FORMATTING
    assert driver.run(0x80, nsid=1, dw10=1).status == FORMATTING
    disk.release()
    driver.bus.run_until(lambda: not driver.card.controller.namespaces.by_id[1].formatting)
    assert driver.io(READ, prp1=buffer.address).status == 0


# Faults of the disk.


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOSPC, CAPACITY),
        (errno.EDQUOT, CAPACITY),
        (errno.EFBIG, CAPACITY),
        (errno.EIO, WRITE_FAULT),
        (errno.EROFS, PROTECTED),
    ],
)
@pytest.mark.parametrize("opcode", [WRITE, WRITE_ZEROES, DSM])
def test_a_failed_write_is_an_error_of_its_command(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch, opcode: int, number: int, status: int
) -> None:
    buffer = driver.buffer(4096, bytes(4) + (8).to_bytes(4, "little"))
    for method in ("write_from", "discard", "write_zeroes"):
        monkeypatch.setattr(FileStore, method, failing(number))
    assert driver.io(opcode, dw10=0, dw11=4 * (opcode == DSM), prp1=buffer.address).status == status
    assert driver.status == READY
    assert driver.io(READ, prp1=buffer.address).status == 0


def test_a_failed_flush_is_an_error_of_the_flush(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStore, "flush", failing(errno.EIO))
    assert driver.io(FLUSH).status == WRITE_FAULT
    assert driver.io(WRITE, dw12=7 | FUA, prp1=driver.buffer().address).status == WRITE_FAULT


@pytest.mark.parametrize("opcode", [READ, 0x05, VERIFY])
def test_data_that_cannot_be_read_are_a_media_error(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch, opcode: int
) -> None:
    monkeypatch.setattr(FileStore, "read_into", failing(errno.EIO))
    failed = driver.io(opcode, 40, 8, prp1=driver.buffer().address)
    assert failed.status == READ_ERROR
    assert int.from_bytes(driver.log_page(2, 512)[160:176], "little") == 1
    assert int.from_bytes(driver.log_page(1, 64)[16:24], "little") == 40


def test_a_file_that_shrinks_gives_errors_and_kills_nothing(driver: NvmeDriver, file: Path) -> None:
    driver.write(0, b"x" * 4096)
    os.truncate(file, 4096)
    buffer = driver.buffer()
    assert driver.io(READ, 8, 8, prp1=buffer.address).status == READ_ERROR
    assert driver.io(READ, 0, 8, prp1=buffer.address).status == 0
    assert bytes(buffer.view) == b"x" * 4096
    assert driver.io(WRITE, 8, 8, prp1=buffer.address).status == 0


def test_a_failed_shutdown_flush_is_fatal(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStore, "flush", failing(errno.EIO))
    driver.bus.strict = False
    driver.write32(CC, ENABLE | 1 << 14)
    driver.bus.run_until(lambda: driver.read32(CSTS) & FATAL)
    driver.bus.run_for(0)
    driver.slot.card.endpoint.errors.clear()


def test_a_failed_format_leaves_the_format(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStore, "discard", failing(errno.EIO))
    assert driver.run(0x80, nsid=1, dw10=1).status == WRITE_FAULT
    assert driver.identify(0x00, 1)[26] == 0
    assert driver.read(0, 1) == bytes(512)


# A read-only disk.


def test_a_read_only_disk_is_write_protected(file: Path) -> None:
    file.write_bytes(b"x" * SIZE)
    driver = NvmeDriver(Nvme(file=file, read_only=True))
    driver.create_queue()
    assert driver.identify(0x00, 1)[99] == 1
    assert driver.read(0, 8) == b"x" * 4096
    buffer = driver.buffer(4096, bytes(4) + (8).to_bytes(4, "little"))
    for opcode in (WRITE, WRITE_ZEROES, DSM):
        fields = {"dw10": 0, "dw11": 4 * (opcode == DSM), "prp1": buffer.address}
        assert driver.io(opcode, **fields).status == PROTECTED
    assert driver.io(FLUSH).status == 0
    assert driver.run(0x80, nsid=1, dw10=1).status == PROTECTED
    assert driver.run(0x0D, nsid=1, dw10=1).status == PROTECTED
    driver.close()
    assert file.read_bytes() == b"x" * SIZE


def test_views_reach_the_file_without_a_copy(
    driver: NvmeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[memoryview] = []
    original = FileStore.read_into

    def spy(store: FileStore, offset: int, buffers: Sequence[memoryview]) -> None:
        seen.extend(buffers)
        original(store, offset, buffers)

    monkeypatch.setattr(FileStore, "read_into", spy)
    buffer = driver.buffer()
    assert driver.io(READ, 0, 8, prp1=buffer.address).status == 0
    assert seen[0].obj is buffer.view.obj
