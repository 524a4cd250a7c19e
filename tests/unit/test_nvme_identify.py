from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import NvmeDriver

from softcard.cards.nvme import Nvme
from softcard.model.options import Size

IDENTIFY = 0x06
INVALID_FIELD, INVALID_NAMESPACE = 0x02, 0x0B
ALL = 0xFFFFFFFF


@pytest.fixture
def driver() -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size("8M"), namespaces=2, serial="S3R1AL", model="A model"))
    yield driver
    driver.close()


def number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def test_the_controller_says_what_it_is(driver: NvmeDriver) -> None:
    data = driver.identify(0x01)
    assert number(data, 0, 2) == driver.device.config_read(0, 2)
    assert data[4:24] == b"S3R1AL".ljust(20)
    assert data[24:64] == b"A model".ljust(40)
    assert data[64:72] == b"1.0".ljust(8)
    assert data[77] == 8, "transfers of up to 1 MiB"
    assert number(data, 80, 4) == 0x00010400
    assert data[111] == 1, "an I/O controller"
    assert (data[512], data[513]) == (0x66, 0x44)
    assert number(data, 516, 4) == 32
    assert data[525] & 1, "a volatile write cache"
    assert number(data, 280, 16) == 8 << 20
    assert number(data, 296, 16) == 0
    assert data[768:1024].rstrip(b"\0").startswith(b"nqn.2014-08.org.nvmexpress:uuid:")
    assert number(data, 2048, 2), "power state 0 needs a power"


def test_two_cards_have_different_names() -> None:
    names = set()
    for _ in range(2):
        driver = NvmeDriver(Nvme(size=Size("1M")))
        names.add((driver.identify(0x01)[768:1024], driver.identify(0x00, 1)[104:128]))
        driver.close()
    assert len(names) == 2
    assert len({subsystem for subsystem, _ in names}) == 2


def test_optional_commands_are_there_where_the_controller_says_so(driver: NvmeDriver) -> None:
    data = driver.identify(0x01)
    admin, io = number(data, 256, 2), number(data, 520, 2)
    effects = driver.log_page(5, 4096)
    for bit, opcode in ((1, 0x80), (2, 0x10), (2, 0x11), (3, 0x0D), (3, 0x15), (8, 0x7C)):
        assert admin >> bit & 1
        assert effects[4 * opcode] & 1
    for bit, opcode in ((0, 0x81), (4, 0x14), (5, 0x19), (6, 0x1D), (7, 0x1C), (9, 0x86)):
        assert not admin >> bit & 1
        assert not effects[4 * opcode] & 1
        assert driver.run(opcode).status == 0x01
    for bit, opcode in ((0, 0x05), (2, 0x09), (3, 0x08), (7, 0x0C)):
        assert io >> bit & 1
        assert effects[1024 + 4 * opcode] & 1
    for bit, opcode in ((1, 0x04), (5, 0x0D)):
        assert not io >> bit & 1
        assert not effects[1024 + 4 * opcode] & 1


def test_an_active_namespace_describes_itself(driver: NvmeDriver) -> None:
    data = driver.identify(0x00, 1)
    assert [number(data, offset, 8) for offset in (0, 8, 16)] == [8192] * 3
    assert data[25] == 1
    assert data[26] == 0
    assert data[33] == 0b01001, "deallocated blocks read as zero"
    assert number(data, 48, 16) == 4 << 20
    assert struct.unpack_from("<HBBHBB", data, 128) == (0, 9, 0, 0, 12, 0)
    assert any(data[104:120])
    assert any(data[120:128])
    assert data[104:128] != driver.identify(0x00, 2)[104:128]
    assert data == driver.identify(0x11, 1)


def test_an_inactive_namespace_is_all_zero(driver: NvmeDriver) -> None:
    assert driver.identify(0x00, 3) == bytes(4096)
    assert driver.identify(0x11, 32) == bytes(4096)


@pytest.mark.parametrize("cns", [0x00, 0x11, 0x03])
@pytest.mark.parametrize("nsid", [0, 33, 0xFFFFFFFE])
def test_an_impossible_namespace_is_refused(driver: NvmeDriver, cns: int, nsid: int) -> None:
    completion = driver.run(IDENTIFY, dw10=cns, nsid=nsid, prp1=driver.buffer().address)
    assert completion.status == INVALID_NAMESPACE


def test_what_namespaces_have_in_common_can_be_asked(driver: NvmeDriver) -> None:
    data = driver.identify(0x00, ALL)
    assert number(data, 0, 8) == 0
    assert data[25] == 1
    assert data[128:136] == driver.identify(0x00, 1)[128:136]


def test_namespace_lists_are_above_the_identifier(driver: NvmeDriver) -> None:
    for cns in (0x02, 0x10):
        assert struct.unpack_from("<4I", driver.identify(cns, 0)) == (1, 2, 0, 0)
        assert struct.unpack_from("<4I", driver.identify(cns, 1)) == (2, 0, 0, 0)
        assert driver.identify(cns, 2) == bytes(4096)
        for nsid in (0xFFFFFFFE, ALL):
            refused = driver.run(IDENTIFY, dw10=cns, nsid=nsid, prp1=driver.buffer().address)
            assert refused.status == INVALID_NAMESPACE


def test_identification_descriptors_repeat_the_identifiers(driver: NvmeDriver) -> None:
    data, namespace = driver.identify(0x03, 2), driver.identify(0x00, 2)
    found, at = {}, 0
    while data[at + 1]:
        kind, length = data[at], data[at + 1]
        found[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    assert found[1] == namespace[120:128]
    assert found[2] == namespace[104:120]
    assert len(found[3]) == 16
    inactive = driver.run(IDENTIFY, dw10=0x03, nsid=3, prp1=driver.buffer().address)
    assert inactive.status == INVALID_FIELD


def test_controller_lists_have_the_one_controller(driver: NvmeDriver) -> None:
    assert driver.identify(0x12, 1)[:4] == bytes((1, 0, 0, 0))
    assert driver.identify(0x13)[:4] == bytes((1, 0, 0, 0))
    assert driver.identify(0x13 | 1 << 16) == bytes(4096)
    for nsid in (3, ALL):
        refused = driver.run(IDENTIFY, dw10=0x12, nsid=nsid, prp1=driver.buffer().address)
        assert refused.status == INVALID_FIELD


def test_the_granularity_list_has_one_descriptor(driver: NvmeDriver) -> None:
    data = driver.identify(0x16)
    assert data[4] == 0
    assert (number(data, 32, 8), number(data, 40, 8)) == (4096, 4096)


def test_the_structures_that_linux_asks_of_every_controller_are_there(driver: NvmeDriver) -> None:
    assert driver.identify(0x05, 1) == bytes(4096)
    assert driver.identify(0x06)[1] == 13, "write zeroes of 32 MiB"
    for cns in (0x05, 0x06):
        other = driver.run(IDENTIFY, dw10=cns, dw11=2 << 24, nsid=1, prp1=driver.buffer().address)
        assert other.status == INVALID_FIELD


@pytest.mark.parametrize("cns", [0x04, 0x07, 0x08, 0x14, 0x15, 0x17, 0x18, 0x1C, 0x80, 0xFF])
def test_other_structures_are_an_invalid_field(driver: NvmeDriver, cns: int) -> None:
    completion = driver.run(IDENTIFY, dw10=cns, nsid=1, prp1=driver.buffer().address)
    assert completion.status == INVALID_FIELD
    assert completion.do_not_retry
    assert completion.more


def test_an_answer_may_cross_a_page(driver: NvmeDriver) -> None:
    buffer = driver.buffer(8192)
    driver.ok(IDENTIFY, dw10=1, prp1=buffer.address + 1024, prp2=buffer.address + 4096)
    assert bytes(buffer.view[1024:5120]) == driver.identify(1)
    assert bytes(buffer.view[:1024]) == bytes(1024)
    assert bytes(buffer.view[5120:]) == bytes(8192 - 5120)
