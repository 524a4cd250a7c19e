from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import (
    ACQ,
    AQA,
    ASQ,
    CAP,
    CC,
    CSTS,
    DOORBELLS,
    ENABLE,
    FATAL,
    INTMC,
    INTMS,
    READY,
    VS,
    NvmeDriver,
)  # fmt: skip

from softcard.cards.nvme import Nvme
from softcard.model.link import ResetKind
from softcard.model.options import Size

SHUTDOWN_NORMAL, SHUTDOWN_ABRUPT = 1 << 14, 2 << 14
SHUTDOWN_COMPLETE = 2 << 2
GARBAGE = 0xDEADBEEF


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("1M"), queue_entries=64), enable=False)
    yield driver
    driver.close()


def admin_queues(driver: NvmeDriver) -> None:
    """Give valid admin queues, without enabling the controller."""
    driver.write32(AQA, 0x001F001F)
    driver.device.write(0, ASQ, driver.bus.alloc(4096).address, 8)
    driver.device.write(0, ACQ, driver.bus.alloc(4096).address, 8)


def test_capabilities_say_what_the_controller_can(driver: NvmeDriver) -> None:
    capabilities = driver.device.read(0, CAP, 8)
    assert capabilities & 0xFFFF == 63
    assert capabilities >> 16 & 1, "queues must be contiguous"
    assert capabilities >> 24 & 0xFF
    assert capabilities >> 32 & 0xF == 0, "doorbells are 4 bytes apart"
    assert capabilities >> 37 & 0xFF == 1, "the NVM command set only"
    assert capabilities >> 48 & 0xF == 0
    assert capabilities >> 52 & 0xF == 4
    assert driver.read32(CAP) | driver.read32(CAP + 4) << 32 == capabilities
    assert driver.read32(VS) == 0x00010400


def test_read_only_registers_ignore_writes(driver: NvmeDriver) -> None:
    before = [driver.read32(offset) for offset in (CAP, CAP + 4, VS, CSTS)]
    for offset in (CAP, CAP + 4, VS, CSTS):
        driver.write32(offset, 0xFFFFFFFF)
    assert [driver.read32(offset) for offset in (CAP, CAP + 4, VS, CSTS)] == before


def test_reserved_bits_read_as_zero(driver: NvmeDriver) -> None:
    driver.write32(AQA, 0xFFFFFFFF)
    driver.device.write(0, ASQ, (1 << 64) - 1, 8)
    assert driver.read32(AQA) == 0x0FFF0FFF
    assert driver.device.read(0, ASQ, 8) == (1 << 64) - 4096


def test_it_becomes_ready_and_not_ready_as_it_is_told(driver: NvmeDriver) -> None:
    assert driver.status == 0
    driver.enable()
    assert driver.status == READY
    driver.disable()
    assert driver.status == 0
    driver.enable()
    assert driver.status == READY


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(ENABLE | 5 << 7, id="page size"),
        pytest.param(ENABLE | 1 << 11, id="arbitration"),
        pytest.param(ENABLE | 1 << 4, id="command set"),
    ],
)
def test_an_impossible_configuration_is_fatal(driver: NvmeDriver, configuration: int) -> None:
    admin_queues(driver)
    driver.write32(CC, configuration)
    assert driver.status == FATAL
    driver.write32(CC, 0)
    assert driver.status == 0, "a reset clears it"


@pytest.mark.parametrize("attributes", [0, 0x1F, 0x001F0000])
def test_admin_queues_of_one_entry_are_fatal(driver: NvmeDriver, attributes: int) -> None:
    admin_queues(driver)
    driver.write32(AQA, attributes)
    driver.write32(CC, ENABLE)
    assert driver.status == FATAL


def test_an_admin_queue_outside_memory_is_fatal() -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), enable=False, strict=False)
    admin_queues(driver)
    driver.device.write(0, ACQ, 0x1000, 8)
    driver.write32(CC, ENABLE)
    assert driver.status == FATAL
    assert not driver.card.endpoint.errors
    driver.disable()
    driver.enable()
    assert driver.status == READY
    driver.close()


def test_an_admin_queue_not_aligned_to_the_page_size_is_fatal(driver: NvmeDriver) -> None:
    admin_queues(driver)
    driver.device.write(0, ASQ, 0x1_0000_1000, 8)
    driver.write32(CC, ENABLE | 1 << 7)
    assert driver.status == FATAL


def test_larger_memory_pages_work(driver: NvmeDriver) -> None:
    buffer = driver.bus.alloc(1 << 17)
    base = -(-buffer.address // 0x10000) * 0x10000
    driver.write32(AQA, 0x001F001F)
    driver.device.write(0, ASQ, base, 8)
    driver.device.write(0, ACQ, base, 8)
    driver.write32(CC, ENABLE | 4 << 7)
    assert driver.status == READY


@pytest.mark.parametrize("kind", [SHUTDOWN_NORMAL, SHUTDOWN_ABRUPT])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_shutdown_completes(driver: NvmeDriver, kind: int, enabled: bool) -> None:
    if enabled:
        driver.enable()
    driver.write32(CC, (ENABLE if enabled else 0) | kind)
    driver.bus.run_until(lambda: driver.status & 0xC == SHUTDOWN_COMPLETE)
    driver.write32(CC, 0)
    assert driver.status == 0


@pytest.mark.parametrize("kind", list(ResetKind))
def test_every_reset_disables_the_controller(driver: NvmeDriver, kind: ResetKind) -> None:
    driver.enable()
    driver.slot.reset(kind)
    driver.device.enumerate()
    assert driver.status == 0
    assert driver.read32(CC) == 0
    assert driver.read32(AQA) == 0
    assert driver.device.read(0, CAP, 8) & 0xFFFF == 63
    driver.device.enable_msix()
    driver.enable()
    driver.create_queue()
    driver.write(0, b"x" * 512)


def test_a_controller_reset_keeps_the_admin_queue_registers(driver: NvmeDriver) -> None:
    driver.enable()
    before = [driver.device.read(0, offset, 8) for offset in (AQA & ~7, ASQ, ACQ)]
    driver.disable()
    assert [driver.device.read(0, offset, 8) for offset in (AQA & ~7, ASQ, ACQ)] == before


def test_a_controller_reset_forgets_queues_and_commands(driver: NvmeDriver) -> None:
    driver.device.enable_msix()
    driver.enable()
    driver.create_queue()
    driver.push(0x0C)
    old = driver.queues[0].cq
    driver.disable()
    driver.enable()
    before = bytes(old.view)
    driver.ring_sq(1, 1)
    driver.card.temperature = 400
    assert bytes(old.view) == before
    driver.create_queue()


@pytest.mark.parametrize("offset", [DOORBELLS, DOORBELLS + 4, DOORBELLS + 0xFFC])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_doorbells_of_a_disabled_controller_do_nothing(
    driver: NvmeDriver, offset: int, size: int
) -> None:
    if offset + size <= DOORBELLS + 0x1000:
        driver.device.write(0, offset, GARBAGE & (1 << 8 * size) - 1, size)
        assert driver.device.read(0, offset, size) == 0
    assert driver.status == 0


# Interrupts.


def identify(driver: NvmeDriver) -> None:
    driver.push(0x06, prp1=driver.buffer().address, dw10=1)


def test_intx_is_asserted_while_there_are_completions(driver: NvmeDriver) -> None:
    driver.enable()
    assert not driver.device.intx_asserted
    identify(driver)
    identify(driver)
    assert driver.device.intx_asserted
    driver.ring_cq(0, 1)
    assert driver.device.intx_asserted, "one completion is still there"
    driver.ring_cq(0, 2)
    assert not driver.device.intx_asserted


def test_intx_is_shared_by_queues(driver: NvmeDriver) -> None:
    driver.enable()
    driver.create_queue(1, vector=0)
    driver.push(0x00, 1, nsid=1)
    identify(driver)
    assert driver.device.intx_asserted
    driver.reap(0)
    assert driver.device.intx_asserted
    driver.reap(1)
    assert not driver.device.intx_asserted


def test_masked_intx_is_released_and_comes_back(driver: NvmeDriver) -> None:
    driver.enable()
    identify(driver)
    driver.write32(INTMS, 1)
    assert not driver.device.intx_asserted
    assert driver.read32(INTMS) == driver.read32(INTMC) == 1
    driver.write32(INTMC, 1)
    assert driver.device.intx_asserted
    assert driver.read32(INTMS) == driver.read32(INTMC) == 0
    driver.reap(0)
    driver.write32(INTMS, 1)
    identify(driver)
    assert not driver.device.intx_asserted
    driver.reap(0)
    driver.write32(INTMC, 1)
    assert not driver.device.intx_asserted, "there is nothing left to interrupt for"


def test_msi_obeys_the_mask(driver: NvmeDriver) -> None:
    driver.device.enable_msi(8)
    driver.enable()
    driver.create_queue(1, vector=5)
    driver.device.take_interrupts()
    driver.push(0x00, 1, nsid=1)
    assert driver.device.take_interrupts() == [5]
    driver.write32(INTMS, 1 << 5)
    driver.push(0x00, 1, nsid=1)
    assert driver.device.take_interrupts() == []
    driver.write32(INTMC, 1 << 5)
    assert driver.device.take_interrupts() == [5]


def test_msix_has_a_vector_for_each_queue(driver: NvmeDriver) -> None:
    driver.device.enable_msix()
    driver.enable()
    for qid in range(1, 9):
        driver.create_queue(qid)
    driver.device.take_interrupts()
    for qid in range(1, 9):
        driver.push(0x00, qid, nsid=1)
        assert driver.device.take_interrupts() == [qid]
    driver.reap(3)
    assert not driver.device.intx_asserted


def test_a_batch_of_commands_interrupts_once(driver: NvmeDriver) -> None:
    driver.device.enable_msix()
    driver.enable()
    driver.create_queue()
    driver.device.take_interrupts()
    for _ in range(10):
        driver.push(0x00, 1, nsid=1, ring=False)
    driver.ring_sq(1, 10)
    assert driver.device.take_interrupts() == [1]
    assert len(driver.reap(1)) == 10


def test_a_message_that_leads_nowhere_is_the_drivers_fault() -> None:
    driver = NvmeDriver(Nvme(size=Size("1M")), strict=False)
    driver.write32(0x2000, 0x5000)
    driver.identify(1)
    assert driver.bus.faults
    assert not driver.card.endpoint.errors
    driver.close()


def test_a_queue_without_interrupts_does_not_interrupt(driver: NvmeDriver) -> None:
    driver.device.enable_msix()
    driver.enable()
    driver.create_queue(flags=1)
    driver.device.take_interrupts()
    driver.ok(0x00, 1, nsid=1)
    assert driver.device.take_interrupts() == []


def test_the_configuration_space_is_that_of_an_nvme_controller(driver: NvmeDriver) -> None:
    assert driver.device.config_read(0x08) >> 8 == 0x010802
    assert driver.device.config_read(0x10) & 0xF == 0b0100, "a 64-bit BAR, not prefetchable"
    for capability in (0x01, 0x05, 0x10, 0x11):
        assert driver.device.find_capability(capability)
