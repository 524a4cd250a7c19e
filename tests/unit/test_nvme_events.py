from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import NvmeDriver

from softcard.cards.nvme import CriticalWarning, Nvme
from softcard.model.options import Size

ASYNC, FORMAT = 0x0C, 0x80
CONFIGURATION = 0x0B
TEMPERATURE_EVENTS, NAMESPACE_NOTICES = 1 << 1, 1 << 8
TOO_MANY = 0x105
TEMPERATURE, NAMESPACE_CHANGED = 0x020101, 0x040002


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("8M"), namespaces=2))
    yield driver
    driver.close()


def test_a_request_waits_for_its_event(driver: NvmeDriver) -> None:
    driver.set_feature(CONFIGURATION, TEMPERATURE_EVENTS)
    cid = driver.push(ASYNC)
    assert driver.reap() == []
    driver.device.take_interrupts()
    driver.card.temperature = 343
    assert driver.device.take_interrupts() == [0]
    assert [(c.cid, c.result, c.status) for c in driver.reap()] == [(cid, TEMPERATURE, 0)]


def test_an_event_waits_for_its_request(driver: NvmeDriver) -> None:
    driver.set_feature(CONFIGURATION, TEMPERATURE_EVENTS)
    driver.card.temperature = 400
    driver.push(ASYNC)
    assert [c.result for c in driver.reap()] == [TEMPERATURE]


def test_a_threshold_that_is_set_below_the_temperature_is_an_event(driver: NvmeDriver) -> None:
    driver.set_feature(CONFIGURATION, TEMPERATURE_EVENTS)
    driver.push(ASYNC)
    driver.push(0x09, dw10=0x04, dw11=300)
    assert sorted(c.result for c in driver.reap()) == [0, TEMPERATURE]


@pytest.mark.parametrize("configuration", [0, ~TEMPERATURE_EVENTS & 0x1FF])
def test_events_that_the_host_does_not_want_are_not_reported(
    driver: NvmeDriver, configuration: int
) -> None:
    driver.set_feature(CONFIGURATION, configuration)
    driver.push(ASYNC)
    driver.card.temperature = 400
    assert driver.reap() == []


@pytest.mark.parametrize(
    ("warning", "result"),
    [
        (CriticalWarning.SPARE, 0x020201),
        (CriticalWarning.RELIABILITY, 0x020001),
        (CriticalWarning.READ_ONLY, 0x020001),
    ],
)
def test_warnings_of_the_owner_are_reported(
    driver: NvmeDriver, warning: CriticalWarning, result: int
) -> None:
    driver.set_feature(CONFIGURATION, 0xFF)
    driver.push(ASYNC)
    driver.card.warnings = warning
    assert [c.result for c in driver.reap()] == [result]
    assert driver.log_page(2, 512)[0] == driver.card.warnings == warning


def test_a_fifth_request_is_too_many(driver: NvmeDriver) -> None:
    cids = [driver.push(ASYNC) for _ in range(5)]
    assert [(c.cid, c.status) for c in driver.reap()] == [(cids[4], TOO_MANY)]


def test_events_of_a_type_wait_until_the_log_is_read(driver: NvmeDriver) -> None:
    driver.set_feature(CONFIGURATION, TEMPERATURE_EVENTS)
    driver.push(ASYNC)
    driver.push(ASYNC)
    driver.card.temperature = 400
    driver.card.temperature = 300
    driver.card.temperature = 400
    assert len(driver.reap()) == 1
    driver.log_page(2, 512, retain=True)
    driver.card.temperature = 300
    driver.card.temperature = 400
    assert driver.reap() == []
    driver.log_page(2, 512)
    driver.card.temperature = 300
    driver.card.temperature = 400
    assert [c.result for c in driver.reap()] == [TEMPERATURE]


def test_events_of_different_types_do_not_wait_for_each_other(driver: NvmeDriver) -> None:
    driver.set_feature(CONFIGURATION, TEMPERATURE_EVENTS)
    driver.push(ASYNC)
    driver.push(ASYNC)
    driver.card.temperature = 400
    driver.ring_sq(9, 1)
    assert [c.result for c in driver.reap()] == [TEMPERATURE, 0x010000]


def test_a_changed_namespace_is_an_event_and_is_listed(driver: NvmeDriver) -> None:
    driver.set_feature(CONFIGURATION, NAMESPACE_NOTICES)
    driver.push(ASYNC)
    driver.push(FORMAT, nsid=2, dw10=1)
    assert NAMESPACE_CHANGED in [c.result for c in driver.reap()]
    assert struct.unpack_from("<3I", driver.log_page(4, 4096, retain=True)) == (2, 0, 0)
    assert struct.unpack_from("<3I", driver.log_page(4, 4096)) == (2, 0, 0)
    assert driver.log_page(4, 4096) == bytes(4096)


def test_a_format_that_changes_nothing_is_no_event(driver: NvmeDriver) -> None:
    driver.set_feature(CONFIGURATION, NAMESPACE_NOTICES)
    driver.push(ASYNC)
    driver.ok(FORMAT, nsid=1, dw10=0)
    assert driver.log_page(4, 4096) == bytes(4096)


def test_a_reset_forgets_requests_and_events(driver: NvmeDriver) -> None:
    driver.set_feature(CONFIGURATION, TEMPERATURE_EVENTS)
    driver.card.temperature = 400
    for _ in range(4):
        driver.push(ASYNC)
    driver.disable()
    driver.enable()
    assert [driver.push(ASYNC) for _ in range(4)]
    assert driver.reap() == []


def test_requests_do_not_keep_other_commands_waiting(driver: NvmeDriver) -> None:
    for _ in range(4):
        driver.push(ASYNC)
    assert len(driver.identify(1)) == 4096
