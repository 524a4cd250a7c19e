from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import NvmeDriver

from softcard.cards.nvme import Nvme
from softcard.model.options import Size

COMMIT, DOWNLOAD = 0x10, 0x11
INVALID_FIELD, INVALID_SLOT, INVALID_IMAGE, OVERLAPPING = 0x02, 0x106, 0x107, 0x114


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("1M")))
    yield driver
    driver.close()


def download(driver: NvmeDriver, start: int, length: int) -> int:
    buffer = driver.buffer(length)
    return driver.run(
        DOWNLOAD, **driver.prps(buffer), dw10=length // 4 - 1, dw11=start // 4
    ).status  # fmt: skip


def test_an_image_is_taken_and_found_invalid(driver: NvmeDriver) -> None:
    assert download(driver, 0, 8192) == 0
    assert download(driver, 8192, 4096) == 0
    refused = driver.run(COMMIT, dw10=0)
    assert refused.status == INVALID_IMAGE
    assert refused.do_not_retry
    assert download(driver, 0, 4096) == 0, "the next download begins anew"


def test_pieces_must_not_overlap(driver: NvmeDriver) -> None:
    assert download(driver, 4096, 8192) == 0
    assert download(driver, 8192, 4096) == OVERLAPPING
    assert download(driver, 0, 8192) == OVERLAPPING
    assert download(driver, 0, 4096) == 0


def test_pieces_are_whole_granules(driver: NvmeDriver) -> None:
    assert download(driver, 0, 512) == INVALID_FIELD
    assert download(driver, 512, 4096) == INVALID_FIELD


@pytest.mark.parametrize(
    ("slot", "action", "status"),
    [
        (1, 0, INVALID_SLOT),
        (1, 1, INVALID_SLOT),
        (2, 0, INVALID_SLOT),
        (7, 2, INVALID_SLOT),
        (0, 1, INVALID_IMAGE),
        (1, 2, 0),
        (1, 3, 0),
        (0, 4, INVALID_FIELD),
        (0, 7, INVALID_FIELD),
    ],
)
def test_the_only_slot_is_read_only(
    driver: NvmeDriver, slot: int, action: int, status: int
) -> None:
    assert driver.run(COMMIT, dw10=slot | action << 3).status == status
