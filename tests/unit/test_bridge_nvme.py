"""The NVMe card, served by vfio-user and bridged, with the tests' own driver."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from tests.unit.nvme_driver import NvmeDriver

from softcard.bridge.vfio_user import VfioUserCard
from softcard.bus.vfio_user import VfioUserServer
from softcard.cards.nvme import Nvme
from softcard.model.options import Size


@pytest.fixture(params=["shared memory", "messages"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NvmeDriver]:
    nvme = Nvme(size=Size("16M"))
    server = VfioUserServer(nvme, tmp_path / "nvme")
    # The driver asks no more of a card than what every card has.
    card = cast(Nvme, VfioUserCard(server.paths[0]))
    driver = NvmeDriver(card, shared=request.param == "shared memory")
    yield driver
    driver.close()
    server.stop()
    nvme.close()


def test_data_comes_back_as_it_was_written(driver: NvmeDriver) -> None:
    driver.create_queue()
    chance = random.Random(1)
    for blocks in (1, 8, 9, 64, 256):
        data = chance.randbytes(blocks << 9)
        lba = chance.randrange(1000)
        driver.write(lba, data)
        assert driver.read(lba, blocks) == data


def test_each_completion_interrupts_with_its_queues_vector(driver: NvmeDriver) -> None:
    for qid in (1, 2, 3):
        driver.create_queue(qid)
    # The last admin command's may be on its way.
    admin = len(driver.device.interrupts)
    for qid in (2, 1, 3):
        driver.ok(0x00, qid, nsid=1)
        driver.bus.run_until(partial(driver.device.interrupts.count, qid))
    assert [v for v in driver.device.interrupts if v] == [2, 1, 3]
    assert len(driver.device.interrupts) <= admin + 4


def test_identify_and_a_reset_of_the_controller(driver: NvmeDriver) -> None:
    before = driver.identify(1)
    driver.disable()
    driver.device.enable_msix()
    driver.enable()
    assert driver.identify(1) == before


def test_a_full_queue_of_commands_completes(driver: NvmeDriver) -> None:
    driver.create_queue()
    buffer = driver.buffer()
    for lba in range(31):
        driver.push(
            0x02, 1, nsid=1, prp1=buffer.address, dw10=lba, dw12=7, ring=lba % 5 == 0 or lba == 30
        )
    found: list[int] = []

    def all_done() -> bool:
        found.extend(c.cid for c in driver.reap(1))
        return len(found) == 31

    driver.bus.run_until(all_done)
    assert sorted(found) == list(range(1, 32))
