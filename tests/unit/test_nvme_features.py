from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import NvmeDriver

from softcard.cards.nvme import Nvme
from softcard.model.link import ResetKind
from softcard.model.options import Size

SET, GET = 0x09, 0x0A
INVALID_FIELD, INVALID_NAMESPACE, SEQUENCE = 0x02, 0x0B, 0x0C
NOT_SAVEABLE, NOT_NAMESPACE_SPECIFIC = 0x10D, 0x10F
CURRENT, DEFAULT, SAVED, SUPPORTED = range(4)
SAVE = 1 << 31
ARBITRATION, POWER, THRESHOLD, RECOVERY, CACHE, QUEUES = 1, 2, 4, 5, 6, 7
COALESCING, VECTOR, ATOMICITY, EVENTS, TIMESTAMP, BEHAVIOR = 8, 9, 0xA, 0xB, 0xE, 0x16
OPTIONAL = (0x03, 0x0C, 0x0D, 0x0F, 0x10, 0x11, 0x12, 0x17, 0x78, 0x80, 0x81, 0x84, 0xC0)


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("1M"), queues=4, namespaces=2))
    yield driver
    driver.close()


@pytest.mark.parametrize(
    ("feature", "default", "value"),
    [
        (ARBITRATION, 0x07, 0x03020103),
        (THRESHOLD, 343, 350),
        (CACHE, 1, 0),
        (COALESCING, 0, 0x0507),
        (ATOMICITY, 0, 1),
        (EVENTS, 0, 0x11F),
    ],
)
def test_a_feature_is_set_saved_and_reset(
    driver: NvmeDriver, feature: int, default: int, value: int
) -> None:
    assert driver.get_feature(feature) == default
    driver.set_feature(feature, value)
    assert driver.get_feature(feature) == value
    assert driver.get_feature(feature, select=DEFAULT) == default
    assert driver.get_feature(feature, select=SAVED) == default
    driver.disable()
    driver.enable()
    assert driver.get_feature(feature) == default
    driver.set_feature(feature, value, save=True)
    assert driver.get_feature(feature, select=SAVED) == value
    driver.slot.reset(ResetKind.POWER_ON)
    driver.device.enumerate()
    driver.device.enable_msix()
    driver.enable()
    assert driver.get_feature(feature) == value
    assert driver.get_feature(feature, select=DEFAULT) == default


@pytest.mark.parametrize("feature", OPTIONAL)
def test_unknown_features_are_an_invalid_field(driver: NvmeDriver, feature: int) -> None:
    assert driver.run(GET, dw10=feature).status == INVALID_FIELD
    assert driver.run(SET, dw10=feature).status == INVALID_FIELD


@pytest.mark.parametrize("select", [4, 5, 6, 7])
def test_unknown_selections_are_an_invalid_field(driver: NvmeDriver, select: int) -> None:
    assert driver.run(GET, dw10=CACHE | select << 8).status == INVALID_FIELD


def test_supported_capabilities_say_what_can_be_done(driver: NvmeDriver) -> None:
    assert driver.get_feature(CACHE, select=SUPPORTED) == 0b101
    assert driver.get_feature(RECOVERY, select=SUPPORTED, nsid=1) == 0b111
    assert driver.get_feature(QUEUES, select=SUPPORTED) == 0b100


@pytest.mark.parametrize("feature", [QUEUES, TIMESTAMP, BEHAVIOR])
def test_some_features_cannot_be_saved(driver: NvmeDriver, feature: int) -> None:
    buffer = driver.buffer()
    command = {"dw10": feature | SAVE, "prp1": buffer.address}
    assert driver.run(SET, **command).status == NOT_SAVEABLE


def test_a_feature_of_the_controller_is_not_set_for_a_namespace(driver: NvmeDriver) -> None:
    assert driver.run(SET, dw10=CACHE, dw11=1, nsid=1).status == NOT_NAMESPACE_SPECIFIC
    driver.set_feature(CACHE, 1, nsid=0xFFFFFFFF)
    assert driver.get_feature(CACHE, nsid=1) == 1


def test_error_recovery_belongs_to_a_namespace(driver: NvmeDriver) -> None:
    driver.set_feature(RECOVERY, 7, nsid=1)
    assert driver.get_feature(RECOVERY, nsid=1) == 7
    assert driver.get_feature(RECOVERY, nsid=2) == 0
    driver.set_feature(RECOVERY, 9, nsid=0xFFFFFFFF)
    assert [driver.get_feature(RECOVERY, nsid=n) for n in (1, 2)] == [9, 9]
    assert driver.run(GET, dw10=RECOVERY, nsid=0xFFFFFFFF).status == INVALID_NAMESPACE
    assert driver.run(GET, dw10=RECOVERY, nsid=0).status == INVALID_NAMESPACE
    assert driver.run(SET, dw10=RECOVERY, nsid=3).status == INVALID_FIELD
    assert driver.run(SET, dw10=RECOVERY, dw11=1 << 16, nsid=1).status == INVALID_FIELD


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(0x00000000, 0x00000000), (0x00020001, 0x00020001), (0x00FF00FF, 0x00030003)],
)
def test_the_driver_gets_as_many_queues_as_there_are(
    driver: NvmeDriver, asked: int, granted: int
) -> None:
    assert driver.set_feature(QUEUES, asked) == granted
    assert driver.get_feature(QUEUES) == granted
    assert driver.get_feature(QUEUES, select=DEFAULT) == 0x00030003
    beyond = (granted & 0xFFFF) + 2
    buffer = driver.buffer()
    driver.set_feature(QUEUES, asked)
    refused = driver.run(0x05, prp1=buffer.address, dw10=(granted >> 16) + 2 | 1 << 16, dw11=1)
    assert refused.status == 0x101
    driver.ok(0x05, prp1=buffer.address, dw10=1 | 1 << 16, dw11=1)
    assert driver.run(
        0x01, prp1=buffer.address, dw10=beyond | 1 << 16, dw11=1 | 1 << 16
    ).status == 0x101  # fmt: skip


@pytest.mark.parametrize("asked", [0x0000FFFF, 0xFFFF0000, 0xFFFFFFFF])
def test_impossible_numbers_of_queues_are_refused(driver: NvmeDriver, asked: int) -> None:
    assert driver.run(SET, dw10=QUEUES, dw11=asked).status == INVALID_FIELD


def test_the_number_of_queues_is_set_before_there_are_any(driver: NvmeDriver) -> None:
    driver.create_queue()
    assert driver.run(SET, dw10=QUEUES, dw11=0).status == SEQUENCE


def test_there_is_one_power_state(driver: NvmeDriver) -> None:
    driver.set_feature(POWER, 0)
    assert driver.get_feature(POWER) == 0
    assert driver.run(SET, dw10=POWER, dw11=1).status == INVALID_FIELD


def test_every_vector_has_its_configuration(driver: NvmeDriver) -> None:
    driver.set_feature(VECTOR, 1 << 16 | 2)
    assert driver.get_feature(VECTOR, dw11=2) == 1 << 16 | 2
    assert driver.get_feature(VECTOR, dw11=1) == 1
    assert driver.run(GET, dw10=VECTOR, dw11=5).status == INVALID_FIELD
    assert driver.run(SET, dw10=VECTOR, dw11=5).status == INVALID_FIELD


def test_the_thresholds_are_of_the_composite_temperature(driver: NvmeDriver) -> None:
    under = 1 << 20
    driver.set_feature(THRESHOLD, under | 280)
    assert driver.get_feature(THRESHOLD, dw11=under) == 280
    assert driver.get_feature(THRESHOLD) == 343
    assert driver.get_feature(THRESHOLD, dw11=under, select=DEFAULT) == 0
    driver.set_feature(THRESHOLD, 0xF << 16 | 345)
    assert driver.get_feature(THRESHOLD) == 345
    for dw11 in (1 << 16, 8 << 16, 2 << 20, 3 << 20):
        assert driver.run(SET, dw10=THRESHOLD, dw11=dw11).status == INVALID_FIELD
        assert driver.run(GET, dw10=THRESHOLD, dw11=dw11).status == INVALID_FIELD


def test_the_timestamp_counts_on_from_what_was_set(driver: NvmeDriver) -> None:
    buffer = driver.buffer()
    driver.ok(GET, dw10=TIMESTAMP, prp1=buffer.address)
    assert int.from_bytes(buffer.view[:6], "little") < 60_000
    assert buffer.view[6] == 0
    buffer.view[:8] = (1 << 40).to_bytes(8, "little")
    driver.ok(SET, dw10=TIMESTAMP, prp1=buffer.address)
    driver.ok(GET, dw10=TIMESTAMP, prp1=buffer.address)
    assert 0 <= int.from_bytes(buffer.view[:6], "little") - (1 << 40) < 60_000
    assert buffer.view[6] == 0b10, "set by the host"


def test_host_behavior_is_remembered_until_a_reset(driver: NvmeDriver) -> None:
    buffer = driver.buffer(512, b"\1")
    driver.ok(SET, dw10=BEHAVIOR, prp1=buffer.address)
    buffer.view[0] = 0
    driver.ok(GET, dw10=BEHAVIOR, prp1=buffer.address)
    assert buffer.view[0] == 1
    driver.ok(GET, dw10=BEHAVIOR | DEFAULT << 8, prp1=buffer.address)
    assert buffer.view[0] == 0
    driver.disable()
    driver.enable()
    driver.ok(GET, dw10=BEHAVIOR, prp1=buffer.address)
    assert buffer.view[0] == 0
