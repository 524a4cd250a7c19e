from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.nvme_driver import NvmeDriver

from softcard.cards.nvme import Nvme
from softcard.errors import UsageError
from softcard.model.options import Size

MANAGE, ATTACHMENT, FORMAT = 0x0D, 0x15, 0x80
READ = 0x02
INVALID_FIELD, INVALID_NAMESPACE = 0x02, 0x0B
INVALID_FORMAT, TOO_LITTLE, NO_IDENTIFIER = 0x10A, 0x115, 0x116
ATTACHED, NOT_ATTACHED, THIN, LIST_INVALID = 0x118, 0x11A, 0x11B, 0x11C
ALL = 0xFFFFFFFF
SIZE = 8 << 20


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NvmeDriver]:
    file = tmp_path / "disk.img" if request.param == "file" else None
    driver = NvmeDriver(Nvme(size=Size(SIZE), file=file))
    driver.create_queue()
    yield driver
    assert not driver.card.endpoint.errors
    driver.close()


def create(
    driver: NvmeDriver, blocks: int, *, capacity: int | None = None, lba_format: int = 0,
    offset: int = 0, value: int = 0,
) -> int:  # fmt: skip
    """Create a namespace; returns its identifier, or minus the status."""
    buffer = driver.buffer()
    struct.pack_into("<QQ", buffer.view, 0, blocks, blocks if capacity is None else capacity)
    buffer.view[26] = lba_format
    if offset:
        buffer.view[offset] = value
    completion = driver.run(MANAGE, prp1=buffer.address, dw10=0)
    return -completion.status or completion.result


def delete(driver: NvmeDriver, nsid: int) -> int:
    return driver.run(MANAGE, nsid=nsid, dw10=1).status


def attach(
    driver: NvmeDriver, nsid: int, *, select: int = 0, controllers: tuple[int, ...] = (0,)
) -> int:
    buffer = driver.buffer()
    struct.pack_into(f"<{len(controllers) + 1}H", buffer.view, 0, len(controllers), *controllers)
    return driver.run(ATTACHMENT, nsid=nsid, prp1=buffer.address, dw10=select).status


def listed(driver: NvmeDriver, cns: int) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", driver.identify(cns)) if nsid]


def unallocated(driver: NvmeDriver) -> int:
    return int.from_bytes(driver.identify(1)[296:312], "little")


def blocks_of(driver: NvmeDriver, nsid: int) -> int:
    return int.from_bytes(driver.identify(0x11, nsid)[:8], "little")


def test_a_namespace_is_deleted_and_others_are_created(driver: NvmeDriver) -> None:
    assert create(driver, 8) == -TOO_LITTLE
    assert delete(driver, 1) == 0
    assert listed(driver, 0x10) == []
    assert unallocated(driver) == SIZE
    assert create(driver, 4096) == 1
    assert create(driver, 512, lba_format=1) == 2
    assert listed(driver, 0x10) == [1, 2]
    assert listed(driver, 0x02) == []
    assert unallocated(driver) == SIZE - (4 << 20)
    assert driver.io(READ, nsid=2, prp1=driver.buffer().address).status == INVALID_FIELD
    assert attach(driver, 2) == 0
    assert listed(driver, 0x02) == [2]
    assert driver.io(READ, nsid=2, prp1=driver.buffer().address).status == 0
    assert driver.identify(0x12, 2)[:4] == bytes((1, 0, 0, 0))
    assert driver.identify(0x12, 1)[:4] == bytes(4)


def test_the_capacity_can_be_used_to_the_last_block_whatever_was_deleted(
    driver: NvmeDriver,
) -> None:
    assert delete(driver, 1) == 0
    for nsid in range(1, 9):
        assert create(driver, 2048) == nsid
        assert attach(driver, nsid) == 0
        driver.write(0, bytes([nsid]) * 4096, nsid=nsid)
    for nsid in (2, 5, 7):
        assert delete(driver, nsid) == 0
    assert create(driver, 3 * 2048) == 2
    assert unallocated(driver) == 0
    assert attach(driver, 2) == 0
    for start in range(0, 3 * 2048, 2048):
        assert driver.read(start, 2048, nsid=2) == bytes(1 << 20), "nothing of the old ones is left"
    data = bytes(range(256)) * 4096
    driver.write(2048 - 7, data[: 1 << 20], nsid=2)
    assert driver.read(2048 - 7, 2048, nsid=2) == data[: 1 << 20]
    buffer = driver.buffer(4096, struct.pack("<IIQ", 0, 4096, 1024))
    assert driver.io(0x09, nsid=2, prp1=buffer.address, dw10=0, dw11=4, dw12=0).status == 0
    assert driver.read(2048, 2048, nsid=2) == bytes(1 << 20)
    assert driver.io(0x05, 4096, 1, nsid=2, prp1=driver.buffer().address).status == 0
    for nsid in (1, 3, 4, 6, 8):
        assert driver.read(0, 8, nsid=nsid) == bytes([nsid]) * 4096


def test_a_size_is_rounded_up_in_capacity_only(driver: NvmeDriver) -> None:
    delete(driver, 1)
    assert create(driver, 9) == 1
    assert blocks_of(driver, 1) == 9
    assert unallocated(driver) == SIZE - 8192


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"blocks": 0}, INVALID_FIELD),
        ({"blocks": 8, "capacity": 4}, THIN),
        ({"blocks": 8, "lba_format": 2}, INVALID_FORMAT),
        ({"blocks": 8, "lba_format": 0x10}, INVALID_FORMAT),
        ({"blocks": 8, "offset": 29, "value": 1}, INVALID_FORMAT),
        ({"blocks": 8, "offset": 30, "value": 1}, INVALID_FIELD),
        ({"blocks": SIZE // 512 + 1}, TOO_LITTLE),
        ({"blocks": (1 << 64) - 1}, TOO_LITTLE),
    ],
)
def test_an_impossible_namespace_is_not_created(
    driver: NvmeDriver, fields: dict[str, int], status: int
) -> None:
    delete(driver, 1)
    assert create(driver, **fields) == -status
    assert listed(driver, 0x10) == []


def test_there_are_32_identifiers(driver: NvmeDriver) -> None:
    delete(driver, 1)
    assert [create(driver, 8) for _ in range(32)] == list(range(1, 33))
    assert create(driver, 8) == -NO_IDENTIFIER
    assert delete(driver, ALL) == 0
    assert listed(driver, 0x10) == []
    assert unallocated(driver) == SIZE


def test_what_is_not_there_cannot_be_deleted(driver: NvmeDriver) -> None:
    assert delete(driver, 2) == INVALID_FIELD
    assert delete(driver, 0) == INVALID_NAMESPACE
    assert delete(driver, 33) == INVALID_NAMESPACE
    assert driver.run(MANAGE, nsid=1, dw10=2).status == INVALID_FIELD


def test_attachment_is_checked(driver: NvmeDriver) -> None:
    assert attach(driver, 1) == ATTACHED
    assert attach(driver, 1, select=1) == 0
    assert attach(driver, 1, select=1) == NOT_ATTACHED
    assert attach(driver, 1, controllers=(1,)) == LIST_INVALID
    assert attach(driver, 1, controllers=()) == LIST_INVALID
    assert attach(driver, 1, controllers=(0, 1)) == LIST_INVALID
    assert attach(driver, 1, select=2) == INVALID_FIELD
    assert attach(driver, 2) == INVALID_FIELD
    assert attach(driver, ALL) == INVALID_NAMESPACE
    assert attach(driver, 1) == 0


def test_a_created_namespace_has_an_identity_of_its_own(driver: NvmeDriver) -> None:
    delete(driver, 1)
    identities = set()
    for _ in range(3):
        create(driver, 8)
        identities.add(driver.identify(0x11, 1)[104:128])
        delete(driver, 1)
    assert len(identities) == 3


# Format.


@pytest.mark.parametrize("erase", [0, 1 << 9])
def test_a_format_changes_the_block_size_and_erases(driver: NvmeDriver, erase: int) -> None:
    driver.write(0, b"x" * 65536)
    driver.ok(FORMAT, nsid=1, dw10=1 | erase)
    assert blocks_of(driver, 1) == SIZE // 4096
    assert driver.identify(0x00, 1)[26] == 1
    assert driver.read(0, 16, shift=12) == bytes(65536)
    driver.write(3, b"y" * 4096, shift=12)
    driver.ok(FORMAT, nsid=ALL, dw10=0 | erase)
    assert blocks_of(driver, 1) == SIZE // 512
    assert driver.read(24, 8) == bytes(4096)


@pytest.mark.parametrize(
    ("nsid", "dw10", "status"),
    [
        (1, 2, INVALID_FORMAT),
        (1, 15, INVALID_FORMAT),
        (1, 1 << 4, INVALID_FORMAT),
        (1, 1 << 5, INVALID_FORMAT),
        (1, 2 << 9, INVALID_FIELD),
        (1, 7 << 9, INVALID_FIELD),
        (0, 0, INVALID_NAMESPACE),
        (2, 0, INVALID_FIELD),
        (33, 0, INVALID_NAMESPACE),
    ],
)
def test_an_impossible_format_is_refused_and_erases_nothing(
    driver: NvmeDriver, nsid: int, dw10: int, status: int
) -> None:
    driver.write(0, b"x" * 512)
    assert driver.run(FORMAT, nsid=nsid, dw10=dw10).status == status
    assert driver.read(0, 1) == b"x" * 512


def test_a_format_erases_only_its_namespace(driver: NvmeDriver) -> None:
    delete(driver, 1)
    for nsid in (1, 2):
        create(driver, 8192)
        attach(driver, nsid)
        driver.write(0, b"x" * 4096, nsid=nsid)
    driver.ok(FORMAT, nsid=1, dw10=1)
    assert driver.read(0, 8, nsid=2) == b"x" * 4096
    driver.ok(FORMAT, nsid=ALL, dw10=0)
    assert driver.read(0, 8, nsid=2) == bytes(4096)


# What outlives the process.


def test_namespaces_of_a_file_are_found_again(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    first = NvmeDriver(Nvme(size=Size(SIZE), file=file))
    first.create_queue()
    delete(first, 1)
    assert create(first, 4096) == 1
    assert create(first, 512, lba_format=1) == 2
    assert create(first, 8) == 3
    assert delete(first, 1) == 0
    assert create(first, 6000) == 1
    assert attach(first, 1) == attach(first, 2) == 0
    first.set_feature(6, 0, save=True)
    first.write(5999, b"1" * 512, nsid=1)
    first.write(0, b"2" * 4096, nsid=2, shift=12)
    before = [first.identify(0x11, nsid) for nsid in (1, 2, 3)]
    subsystem = first.identify(1)[768:1024]
    first.close()

    second = NvmeDriver(Nvme(file=file))
    second.create_queue()
    assert [second.identify(0x11, nsid) for nsid in (1, 2, 3)] == before
    assert second.identify(1)[768:1024] == subsystem
    assert listed(second, 0x02) == [1, 2]
    assert second.read(5999, 1, nsid=1) == b"1" * 512
    assert second.read(0, 1, nsid=2, shift=12) == b"2" * 4096
    assert second.get_feature(6) == 0
    second.close()


def test_a_file_that_was_never_changed_has_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    driver = NvmeDriver(Nvme(size=Size(SIZE), file=file))
    driver.create_queue()
    driver.write(0, b"x" * 512)
    driver.close()
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"version": 2}',
        '{"version": 1, "namespaces": [{}], "features": {}}',
        '{"version": 1, "namespaces": [], "features": {"999 0 0": 1}}',
    ],
)
def test_damaged_state_is_a_usage_error_and_no_data_are_touched(
    tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(b"x" * SIZE)
    (tmp_path / "disk.img.nvme").write_text(damage)
    with pytest.raises(UsageError, match=r"disk\.img\.nvme"):
        Nvme(file=file)
    assert file.read_bytes() == b"x" * SIZE
    (tmp_path / "disk.img.nvme").unlink()
    Nvme(file=file).close()


@pytest.mark.parametrize(
    "change",
    [
        {"nsid": 33},
        {"block_size": 1024},
        {"blocks": 1 << 40},
        {"blocks": 0},
        {"extents": [[0, SIZE + 512]]},
        {"extents": [[-512, 1024]]},
        {"extents": [[0, 4096], [2048, 4096]]},
        {"extents": [7]},
        {"uuid": "no"},
        {"attached": 1},
    ],
)
def test_state_that_does_not_fit_the_file_is_a_usage_error(
    tmp_path: Path, change: dict[str, object]
) -> None:
    import json

    file = tmp_path / "disk.img"
    driver = NvmeDriver(Nvme(size=Size(SIZE), file=file))
    attach(driver, 1, select=1)
    driver.close()
    state = tmp_path / "disk.img.nvme"
    saved = json.loads(state.read_text())
    saved["namespaces"][0] |= change
    state.write_text(json.dumps(saved))
    with pytest.raises(UsageError, match=r"disk\.img\.nvme"):
        Nvme(file=file)
