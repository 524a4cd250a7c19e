from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator

import pytest
from tests.unit.nvme_driver import ENABLE, PAGE, NvmeDriver

from softcard.cards.nvme import Nvme
from softcard.model.options import Size

FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM, VERIFY = 0, 1, 2, 5, 8, 9, 0x0C
INVALID_OPCODE, INVALID_FIELD, TRANSFER_ERROR, INVALID_NAMESPACE = 1, 2, 4, 0x0B
PRP_OFFSET, LBA_RANGE, COMPARE_FAILURE = 0x13, 0x80, 0x285
ALL = 0xFFFFFFFF
SIZE = 8 << 20
BLOCKS = SIZE // 512
DEAC, FUA = 1 << 25, 1 << 30
LARGEST = 1 << 20


@pytest.fixture(params=[True, False], ids=["shared memory", "no shared memory"])
def driver(request: pytest.FixtureRequest) -> Iterator[NvmeDriver]:
    driver = NvmeDriver(Nvme(size=Size(SIZE)), shared=request.param)
    driver.create_queue()
    yield driver
    driver.close()


@pytest.fixture(params=[True, False], ids=["shared memory", "no shared memory"])
def lenient(request: pytest.FixtureRequest) -> Iterator[NvmeDriver]:
    """A driver that may give addresses where no memory is."""
    driver = NvmeDriver(Nvme(size=Size(SIZE)), shared=request.param, strict=False)
    driver.create_queue()
    yield driver
    assert not driver.card.endpoint.errors
    driver.close()


@pytest.mark.parametrize(
    "length", [512, 4096, 4608, 8192, 8704, 12288, 65536, LARGEST - 512, LARGEST]
)
def test_what_was_written_is_read(driver: NvmeDriver, length: int) -> None:
    data = os.urandom(length)
    driver.write(7, data)
    assert driver.read(7, length // 512) == data
    assert driver.read(6, 1) == bytes(512)
    assert driver.read(7 + length // 512, 1) == bytes(512)


@pytest.mark.parametrize("offset", [4, 512, 2048, 4092])
@pytest.mark.parametrize("length", [512, 4096, 8192, 16384, 65536])
def test_data_may_start_inside_a_page(driver: NvmeDriver, offset: int, length: int) -> None:
    data = os.urandom(length)
    buffer = driver.buffer(length + 2 * PAGE)
    buffer.view[offset : offset + length] = data
    pages = range(buffer.address + PAGE, buffer.address + offset + length, PAGE)
    fields = {"prp1": buffer.address + offset}
    if len(pages) == 1:
        fields["prp2"] = pages[0]
    elif pages:
        entries = driver.bus.alloc(PAGE)
        struct.pack_into(f"<{len(pages)}Q", entries.view, 0, *pages)
        fields["prp2"] = entries.address
    assert driver.io(WRITE, 3, length // 512, **fields).status == 0
    buffer.view[:] = bytes(len(buffer.view))
    assert driver.io(READ, 3, length // 512, **fields).status == 0
    assert bytes(buffer.view[offset : offset + length]) == data
    assert not any(buffer.view[:offset])
    assert not any(buffer.view[offset + length :])


@pytest.mark.parametrize("start", [0, 8, 4080, 4088])
def test_a_prp_list_may_start_anywhere_and_go_on_in_another_page(
    driver: NvmeDriver, start: int
) -> None:
    data = os.urandom(64 * PAGE)
    buffer = driver.buffer(len(data), data)
    pages = list(range(buffer.address + PAGE, buffer.address + len(data), PAGE))
    random.Random(1).shuffle(pages)
    first, second = driver.bus.alloc(PAGE), driver.bus.alloc(PAGE)
    here = (PAGE - start) // 8
    if len(pages) > here:
        struct.pack_into(f"<{here}Q", first.view, start, *pages[: here - 1], second.address)
        struct.pack_into(f"<{len(pages) - here + 1}Q", second.view, 0, *pages[here - 1 :])
    else:
        struct.pack_into(f"<{len(pages)}Q", first.view, start, *pages)
    fields = {"prp1": buffer.address, "prp2": first.address + start}
    assert driver.io(WRITE, 0, 512, **fields).status == 0
    shuffled = b"".join(
        data[page - buffer.address : page - buffer.address + PAGE]
        for page in [buffer.address, *pages]
    )
    assert driver.read(0, 512) == shuffled


def test_blocks_of_4096_bytes() -> None:
    driver = NvmeDriver(Nvme(size=Size(SIZE), block_size=4096))
    driver.create_queue()
    data = os.urandom(3 * 4096)
    driver.write(5, data, shift=12)
    assert driver.read(4, 5, shift=12) == bytes(4096) + data + bytes(4096)
    buffer = driver.buffer()
    assert driver.io(READ, SIZE // 4096, prp1=buffer.address).status == LBA_RANGE
    driver.close()


@pytest.mark.parametrize("code", [1, 4])
@pytest.mark.parametrize("length", [512, 8192, 65536, LARGEST])
def test_larger_memory_pages(code: int, length: int) -> None:
    driver = NvmeDriver(Nvme(size=Size(SIZE)), enable=False)
    driver.device.enable_msix()
    driver.enable(ENABLE | code << 7)
    driver.create_queue()
    data = os.urandom(length)
    driver.write(3, data)
    assert driver.read(3, length // 512) == data
    driver.close()


# What is refused.


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"prp1": 0x1_0000_0002}, id="PRP 1"),
        pytest.param({"prp1": 0x1_0000_0001}, id="PRP 1 odd"),
        pytest.param({"prp2": 0x1_0000_0004, "dw12": 15}, id="PRP 2"),
        pytest.param({"prp2": 0x1_0000_0004, "dw12": 31}, id="list"),
    ],
)
def test_a_misaligned_data_pointer_is_refused(
    lenient: NvmeDriver, opcode: int, fields: dict[str, int]
) -> None:
    buffer = lenient.buffer()
    completion = lenient.io(opcode, **{"prp1": buffer.address} | fields)
    assert completion.status == PRP_OFFSET
    assert completion.do_not_retry
    assert not lenient.bus.faults


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE])
@pytest.mark.parametrize("where", ["entry", "chain"])
def test_a_misaligned_list_entry_is_refused(lenient: NvmeDriver, opcode: int, where: str) -> None:
    buffer, entries = lenient.buffer(4 * PAGE), lenient.bus.alloc(PAGE)
    if where == "entry":
        struct.pack_into("<2Q", entries.view, 0, buffer.address + PAGE, buffer.address + 8)
        prp2 = entries.address
    else:
        struct.pack_into("<Q", entries.view, PAGE - 8, entries.address + PAGE - 8)
        prp2 = entries.address + PAGE - 8
    completion = lenient.io(opcode, 0, 24, prp1=buffer.address, prp2=prp2)
    assert completion.status == PRP_OFFSET


def test_a_list_that_leads_to_itself_ends(lenient: NvmeDriver) -> None:
    buffer, entries = lenient.buffer(), lenient.bus.alloc(PAGE)
    struct.pack_into("<512Q", entries.view, 0, *[entries.address] * 512)
    assert lenient.io(READ, 0, 2048, prp1=buffer.address, prp2=entries.address).status == 0


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"prp1": 0x1000}, id="PRP 1"),
        pytest.param({"prp1": (1 << 64) - PAGE}, id="end of the address space"),
        pytest.param({"prp2": 0x1000, "dw12": 15}, id="PRP 2"),
        pytest.param({"prp2": 0x1000, "dw12": 31}, id="list"),
    ],
)
def test_memory_that_is_not_there_is_a_transfer_error(
    lenient: NvmeDriver, opcode: int, fields: dict[str, int]
) -> None:
    buffer = lenient.buffer()
    completion = lenient.io(opcode, **{"prp1": buffer.address} | fields)
    assert completion.status == TRANSFER_ERROR
    assert not completion.do_not_retry
    assert lenient.bus.faults
    assert lenient.io(READ, prp1=buffer.address).status == 0, "the queue goes on"


def test_ranges_that_are_not_there_are_a_transfer_error(lenient: NvmeDriver) -> None:
    assert lenient.io(DSM, dw10=0, dw11=4, prp1=0x1000).status == TRANSFER_ERROR


def test_a_list_entry_outside_memory_is_a_transfer_error(lenient: NvmeDriver) -> None:
    buffer, entries = lenient.buffer(4 * PAGE), lenient.bus.alloc(PAGE)
    struct.pack_into("<2Q", entries.view, 0, buffer.address + PAGE, 0x7000)
    fields = {"prp1": buffer.address, "prp2": entries.address}
    assert lenient.io(WRITE, 0, 24, **fields).status == TRANSFER_ERROR
    lenient.write(0, b"x" * 512)
    assert lenient.io(READ, 0, 24, **fields).status == TRANSFER_ERROR


def test_memory_that_was_unmapped_is_not_used(lenient: NvmeDriver) -> None:
    """Whole pages are remembered, so they must be forgotten in time."""
    buffer = lenient.buffer()
    assert lenient.io(READ, 0, 8, prp1=buffer.address).status == 0
    assert lenient.io(READ, 0, 8, prp1=buffer.address).status == 0
    lenient.bus.free(buffer)
    lenient.write(0, b"x" * 4096)
    assert lenient.io(READ, 0, 8, prp1=buffer.address).status == TRANSFER_ERROR
    assert not any(buffer.view)


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE, WRITE_ZEROES, VERIFY])
@pytest.mark.parametrize(
    ("lba", "blocks"),
    [(BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS - 7, 8), ((1 << 64) - 1, 1), ((1 << 64) - 8, 8)],
)
def test_blocks_beyond_the_end_are_out_of_range(
    driver: NvmeDriver, opcode: int, lba: int, blocks: int
) -> None:
    completion = driver.io(opcode, lba, blocks, prp1=driver.buffer().address)
    assert completion.status == LBA_RANGE


@pytest.mark.parametrize("opcode", [FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM, VERIFY])
@pytest.mark.parametrize(
    ("nsid", "status"),
    [(0, INVALID_NAMESPACE), (2, INVALID_FIELD), (33, INVALID_NAMESPACE), (ALL, INVALID_NAMESPACE)],
)
def test_a_namespace_that_is_not_there(
    driver: NvmeDriver, opcode: int, nsid: int, status: int
) -> None:
    expected = 0 if opcode == FLUSH and nsid == ALL else status
    assert driver.io(opcode, nsid=nsid, prp1=driver.buffer().address).status == expected


@pytest.mark.parametrize("opcode", [0x03, 0x04, 0x0D, 0x0E, 0x11, 0x15, 0x19, 0x7F, 0x80, 0xFF])
def test_unknown_opcodes_are_invalid(driver: NvmeDriver, opcode: int) -> None:
    completion = driver.io(opcode, prp1=driver.buffer().address)
    assert completion.status == INVALID_OPCODE
    assert completion.do_not_retry


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x40, 0x80, 0xC0])
@pytest.mark.parametrize("opcode", [READ, WRITE, FLUSH])
def test_fused_commands_and_sgls_are_an_invalid_field(
    driver: NvmeDriver, opcode: int, flags: int
) -> None:
    completion = driver.io(opcode, flags=flags, prp1=driver.buffer().address)
    assert completion.status == INVALID_FIELD


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE])
def test_more_than_the_largest_transfer_is_an_invalid_field(
    driver: NvmeDriver, opcode: int
) -> None:
    buffer = driver.buffer(LARGEST)
    assert driver.io(opcode, 0, LARGEST // 512, **driver.prps(buffer)).status in (0, 0x285)
    fields = driver.prps(buffer)
    assert driver.io(opcode, 0, LARGEST // 512 + 1, **fields).status == INVALID_FIELD


def test_a_write_with_a_directive_is_an_invalid_field(driver: NvmeDriver) -> None:
    buffer = driver.buffer()
    assert driver.io(WRITE, dw12=1 << 20, prp1=buffer.address).status == INVALID_FIELD


# The other commands.


@pytest.mark.parametrize("nsid", [1, ALL])
def test_flush(driver: NvmeDriver, nsid: int) -> None:
    assert driver.io(FLUSH, nsid=nsid).status == 0


@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_forced_unit_access(driver: NvmeDriver, opcode: int) -> None:
    buffer = driver.buffer(PAGE, b"f" * PAGE)
    assert driver.io(opcode, dw12=7 | FUA, prp1=buffer.address).status == 0
    assert driver.read(0, 8) == (b"f" * PAGE if opcode == WRITE else bytes(PAGE))


def test_compare_finds_every_difference(driver: NvmeDriver) -> None:
    data = os.urandom(8192)
    driver.write(4, data)
    buffer = driver.buffer(8192, data)
    fields = driver.prps(buffer)
    assert driver.io(COMPARE, 4, 16, **fields).status == 0
    for at in (0, 4095, 8191):
        buffer.view[at] ^= 1
        failed = driver.io(COMPARE, 4, 16, **fields)
        assert failed.status == COMPARE_FAILURE
        assert failed.do_not_retry
        buffer.view[at] ^= 1


@pytest.mark.parametrize("deallocate", [0, DEAC])
def test_write_zeroes(driver: NvmeDriver, deallocate: int) -> None:
    driver.write(0, b"x" * 65536)
    assert driver.io(WRITE_ZEROES, 3, dw12=99 | deallocate).status == 0
    data = driver.read(0, 128)
    assert data == b"x" * 3 * 512 + bytes(100 * 512) + b"x" * 25 * 512


def test_write_zeroes_is_not_limited_to_a_transfer(driver: NvmeDriver) -> None:
    driver.write(BLOCKS - 1, b"x" * 512)
    assert driver.io(WRITE_ZEROES, 0, BLOCKS).status == 0
    assert driver.read(BLOCKS - 1, 1) == bytes(512)


def ranges(driver: NvmeDriver, *ranges: tuple[int, int]) -> dict[str, int]:
    data = b"".join(struct.pack("<IIQ", 0, blocks, start) for start, blocks in ranges)
    buffer = driver.buffer(PAGE, data)
    return {"prp1": buffer.address, "dw10": len(ranges) - 1, "dw11": 1 << 2, "dw12": 0}


def test_deallocated_ranges_read_as_zero(driver: NvmeDriver) -> None:
    driver.write(0, b"x" * 32768)
    many = [(2 * n, 1) for n in range(1, 32)]
    assert driver.io(DSM, **ranges(driver, *many, (50, 0))).status == 0
    data = driver.read(0, 64)
    for block in range(64):
        expected = 0 if block in dict(many) else ord("x")
        assert set(data[512 * block : 512 * block + 512]) == {expected}


def test_256_ranges_fit_one_command(driver: NvmeDriver) -> None:
    driver.write(0, b"x" * 256 * 512)
    assert driver.io(DSM, **ranges(driver, *((n, 1) for n in range(256)))).status == 0
    assert driver.read(0, 256) == bytes(256 * 512)


def test_a_range_beyond_the_end_deallocates_nothing(driver: NvmeDriver) -> None:
    driver.write(0, b"x" * 512)
    assert driver.io(DSM, **ranges(driver, (0, 1), (BLOCKS, 1))).status == LBA_RANGE
    assert driver.read(0, 1) == b"x" * 512


def test_hints_change_nothing(driver: NvmeDriver) -> None:
    driver.write(0, b"x" * 512)
    assert driver.io(DSM, **ranges(driver, (0, 1)) | {"dw11": 0b011}).status == 0
    assert driver.read(0, 1) == b"x" * 512


def test_verify_moves_no_data(driver: NvmeDriver) -> None:
    assert driver.io(VERIFY, 0, BLOCKS, prp1=0).status == 0


def test_a_batch_is_completed_in_order_and_whole(driver: NvmeDriver) -> None:
    buffers = [driver.buffer(PAGE, bytes([n]) * PAGE) for n in range(20)]
    cids = [
        driver.push(WRITE, 1, nsid=1, prp1=b.address, dw10=8 * n, dw12=7, ring=False)
        for n, b in enumerate(buffers)
    ]
    driver.ring_sq(1, 20)
    assert [(c.cid, c.status) for c in driver.reap(1)] == [(cid, 0) for cid in cids]
    assert driver.read(0, 160) == b"".join(bytes([n]) * PAGE for n in range(20))


def test_good_and_bad_commands_mix(driver: NvmeDriver) -> None:
    buffer = driver.buffer()
    for n in range(21):
        opcode = (READ, 0x7F, WRITE)[n % 3]
        driver.push(opcode, 1, nsid=1, prp1=buffer.address, dw12=7, ring=False)
    driver.ring_sq(1, 21)
    assert [c.status for c in driver.reap(1)] == [0, INVALID_OPCODE, 0] * 7
    assert driver.reap(1) == []


def test_random_transfers_against_a_model(driver: NvmeDriver) -> None:
    generator = random.Random(2)
    model = bytearray(SIZE)
    for _ in range(150):
        blocks = generator.choice([1, 7, 8, 9, 16, 100])
        lba = generator.randrange(BLOCKS - blocks)
        place = slice(lba * 512, (lba + blocks) * 512)
        match generator.randrange(4):
            case 0 | 1:
                model[place] = generator.randbytes(blocks * 512)
                driver.write(lba, bytes(model[place]))
            case 2:
                assert driver.read(lba, blocks) == model[place]
            case 3:
                model[place] = bytes(blocks * 512)
                assert driver.io(WRITE_ZEROES, lba, blocks).status == 0
    assert b"".join(driver.read(n * 2048, 2048) for n in range(SIZE >> 20)) == model
