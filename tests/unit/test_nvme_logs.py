from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import CC, ENABLE, NvmeDriver

from softcard.cards.nvme import Nvme
from softcard.model.link import ResetKind
from softcard.model.options import Size

GET_LOG = 0x02
INVALID_FIELD, INVALID_LOG, LBA_RANGE = 0x02, 0x109, 0x80
ERRORS, SMART, FIRMWARE, CHANGED, EFFECTS = range(1, 6)


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("8M")))
    driver.create_queue()
    yield driver
    driver.close()


def smart(driver: NvmeDriver) -> dict[str, int]:
    data = driver.log_page(SMART, 512)
    places = {
        "warning": (0, 1), "temperature": (1, 2), "spare": (3, 1), "used": (5, 1),
        "units_read": (32, 16), "units_written": (48, 16), "reads": (64, 16), "writes": (80, 16),
        "power_cycles": (112, 16), "hours": (128, 16), "unsafe": (144, 16), "media": (160, 16),
        "errors": (176, 16),
    }  # fmt: skip
    return {
        name: int.from_bytes(data[at : at + size], "little") for name, (at, size) in places.items()
    }


def test_a_new_disk_is_healthy(driver: NvmeDriver) -> None:
    assert smart(driver) == {
        "warning": 0, "temperature": 313, "spare": 100, "used": 0, "units_read": 0,
        "units_written": 0, "reads": 0, "writes": 0, "power_cycles": 1, "hours": 0, "unsafe": 0,
        "media": 0, "errors": 0,
    }  # fmt: skip


def test_reads_and_writes_are_counted_with_their_data(driver: NvmeDriver) -> None:
    driver.write(0, bytes(512))
    driver.write(8, bytes(4096))
    driver.write(8, bytes(1 << 20))
    for _ in range(3):
        driver.read(0, 8)
    now = smart(driver)
    assert (now["reads"], now["writes"]) == (3, 3)
    assert (now["units_read"], now["units_written"]) == (1, 3), "thousands of blocks, rounded up"


def test_the_fast_path_is_counted_like_the_slow_one(driver: NvmeDriver) -> None:
    buffer = driver.buffer()
    for _ in range(500):
        driver.ok(0x02, 1, nsid=1, prp1=buffer.address, dw12=7)
    assert smart(driver)["reads"] == 500
    assert smart(driver)["units_read"] == 4


def test_compare_and_verify_are_reads_and_failures_are_none(driver: NvmeDriver) -> None:
    buffer = driver.buffer()
    assert driver.io(0x05, blocks=8, prp1=buffer.address).status == 0
    assert driver.io(0x0C, blocks=8).status == 0
    assert driver.io(0x02, 1 << 40, prp1=buffer.address).status == LBA_RANGE
    assert driver.io(0x08, blocks=8).status == 0
    now = smart(driver)
    assert (now["reads"], now["writes"], now["units_read"]) == (2, 0, 1)
    assert now["errors"] == 1


@pytest.mark.parametrize("shut_down", [True, False])
def test_power_cycles_and_unsafe_shutdowns(driver: NvmeDriver, shut_down: bool) -> None:
    if shut_down:
        driver.write32(CC, ENABLE | 1 << 14)
    driver.slot.reset(ResetKind.POWER_ON)
    driver.device.enumerate()
    driver.device.enable_msix()
    driver.enable()
    now = smart(driver)
    assert now["power_cycles"] == 2
    assert now["unsafe"] == (0 if shut_down else 1)


def test_other_resets_are_no_power_cycles(driver: NvmeDriver) -> None:
    driver.slot.reset(ResetKind.FLR)
    driver.device.enumerate()
    driver.device.enable_msix()
    driver.enable()
    now = smart(driver)
    assert (now["power_cycles"], now["unsafe"]) == (1, 0)


def test_counters_outlive_being_unplugged(driver: NvmeDriver) -> None:
    card = driver.card
    driver.write(0, bytes(512))
    driver.slot.unplug()
    again = NvmeDriver(card)
    now = smart(again)
    assert (now["writes"], now["power_cycles"], now["unsafe"]) == (1, 2, 1)
    again.slot.unplug()
    driver.slot = driver.bus.plug(card)


def test_a_disk_that_is_hot_warns(driver: NvmeDriver) -> None:
    driver.card.temperature = 343
    now = smart(driver)
    assert (now["temperature"], now["warning"]) == (343, 0b10)
    driver.set_feature(4, 350)
    assert smart(driver)["warning"] == 0
    driver.card.temperature = 270
    driver.set_feature(4, 1 << 20 | 275)
    assert smart(driver)["warning"] == 0b10


def test_smart_is_of_the_controller_only(driver: NvmeDriver) -> None:
    buffer = driver.buffer()
    command = {"dw10": SMART | 127 << 16, "prp1": buffer.address}
    assert driver.run(GET_LOG, nsid=0, **command).status == 0
    assert driver.run(GET_LOG, nsid=1, **command).status == INVALID_FIELD


def test_errors_are_logged_newest_first(driver: NvmeDriver) -> None:
    driver.io(0x02, 1 << 40, prp1=driver.buffer().address)
    failed = driver.run(0x7F, 1, cid=0x1234, nsid=7)
    assert failed.more
    page = driver.log_page(ERRORS, 64 * 64)
    newest, older = (
        struct.unpack_from("<QHHHHQI", page, offset) for offset in (0, 64)
    )  # fmt: skip
    assert newest[:3] == (2, 1, 0x1234)
    assert newest[3] >> 1 & 0x7FF == 0x01
    assert newest[6] == 7
    assert older[0] == 1
    assert older[3] >> 1 & 0x7FF == LBA_RANGE
    assert older[5] == 1 << 40
    assert page[128:] == bytes(62 * 64)


def test_the_error_log_keeps_the_newest_64(driver: NvmeDriver) -> None:
    for _ in range(70):
        driver.run(0x7F, 1)
    page = driver.log_page(ERRORS, 64 * 64)
    assert [struct.unpack_from("<Q", page, 64 * n)[0] for n in range(64)] == [*range(70, 6, -1)]
    assert smart(driver)["errors"] == 70


def test_the_firmware_log_shows_the_slot(driver: NvmeDriver) -> None:
    page = driver.log_page(FIRMWARE, 512)
    assert page[0] == 1
    assert page[8:16] == b"1.0     "
    assert page[16:] == bytes(496)


def test_effects_tell_what_changes_blocks(driver: NvmeDriver) -> None:
    effects = memoryview(driver.log_page(EFFECTS, 4096)).cast("I")
    assert effects[256 + 0x02] == 0b01
    assert effects[256 + 0x01] == 0b11
    assert effects[0x80] & 0b111 == 0b111
    assert effects[0x0D] & 0b1000


def test_a_page_can_be_read_in_parts(driver: NvmeDriver) -> None:
    whole = driver.log_page(EFFECTS, 4096)
    assert driver.log_page(EFFECTS, 100, offset=200) == whole[200:300]
    assert driver.log_page(EFFECTS, 8, offset=4092) == whole[4092:] + bytes(4)
    assert driver.log_page(FIRMWARE, 4, offset=512) == bytes(4)


@pytest.mark.parametrize("offset", [2, 513, 516])
def test_bad_offsets_are_an_invalid_field(driver: NvmeDriver, offset: int) -> None:
    command = {"dw10": FIRMWARE, "dw12": offset, "prp1": driver.buffer().address}
    assert driver.run(GET_LOG, **command).status == INVALID_FIELD


def test_a_page_larger_than_a_transfer_is_an_invalid_field(driver: NvmeDriver) -> None:
    command = {"dw10": EFFECTS, "dw11": 4, "prp1": driver.buffer().address}
    assert driver.run(GET_LOG, **command).status == INVALID_FIELD


@pytest.mark.parametrize("page", [0x00, 0x06, 0x07, 0x08, 0x0B, 0x0C, 0x0D, 0x70, 0x80, 0xC0])
def test_other_pages_do_not_exist(driver: NvmeDriver, page: int) -> None:
    command = {"dw10": page | 127 << 16, "prp1": driver.buffer().address}
    assert driver.run(GET_LOG, **command).status == INVALID_LOG
