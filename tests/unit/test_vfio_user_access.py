"""The vfio-user server: what the device is, and accesses to its regions."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.fake_vfio_client import (
    BROKEN,
    CONFIG,
    DEVICE_INFO,
    INTX,
    IRQ_INFO,
    MSI,
    MSIX,
    NO_REPLY,
    NOTED,
    PAGE,
    REGION_INFO,
    REGION_IO_FDS,
    REGION_READ,
    REGION_WRITE,
    RESET,
    ROM,
    SCRATCH,
    VGA,
    WRITE_MULTI,
    Board,
    FakeClient,
    RefusedError,
    access,
    served,
)

from softcard import ResetKind
from softcard.bus.vfio_user import VfioUserServer

REGIONS, IRQS = 9, 5
MIB = 1 << 20
FULL_INFO = 32 + 8 + 8 + 2 * 16
READABLE, WRITABLE, MAPPABLE, CAPABILITIES = 1, 2, 4, 8


@pytest.fixture
def card() -> Board:
    return Board()


@pytest.fixture
def server(card: Board, tmp_path: Path) -> Iterator[VfioUserServer]:
    with served(card, tmp_path) as server:
        yield server


@pytest.fixture
def client(server: VfioUserServer) -> Iterator[FakeClient]:
    with FakeClient(server.paths[0]) as client:
        client.enable()
        yield client


def region_info(client: FakeClient, index: int, room: int = 32) -> tuple[int, ...]:
    """The first part of the reply."""
    query = struct.pack("<IIIIQQ", room, 0, index, 0, 0, 0)
    return struct.unpack_from("<IIIIQQ", client.ask(REGION_INFO, query))


# Information.


def test_the_device_is_pci_and_can_be_reset(client: FakeClient) -> None:
    reply = client.ask(DEVICE_INFO, struct.pack("<IIII", 100, 0, 0, 0))
    assert struct.unpack("<IIII", reply) == (16, 3, REGIONS, IRQS)


@pytest.mark.parametrize("command", [DEVICE_INFO, REGION_INFO, REGION_IO_FDS, IRQ_INFO])
def test_a_query_with_too_little_room_for_its_reply_is_refused(
    client: FakeClient, command: int
) -> None:
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(command, struct.pack("<I", 15) + bytes(28))


@pytest.mark.parametrize("command", [DEVICE_INFO, REGION_INFO, REGION_IO_FDS, IRQ_INFO])
def test_a_query_that_is_too_short_is_refused(client: FakeClient, command: int) -> None:
    for payload in (b"", b"\x10", struct.pack("<II", 32, 0)):
        with pytest.raises(RefusedError, match="EINVAL"):
            client.ask(command, payload)


@pytest.mark.parametrize("index", [9, 1 << 31, (1 << 32) - 1])
def test_there_are_no_other_regions_and_interrupts(client: FakeClient, index: int) -> None:
    with pytest.raises(RefusedError, match="EINVAL"):
        region_info(client, index)
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))


def test_regions_are_as_large_as_the_cards(client: FakeClient) -> None:
    sizes = [region_info(client, index)[4] for index in range(REGIONS)]
    assert sizes == [0x1000, 0, 2 * MIB, 0, 0x1000, 0, 0, 256, 0]
    assert region_info(client, 0) == (32, READABLE | WRITABLE, 0, 0, 0x1000, 0)
    assert region_info(client, 1) == (32, 0, 1, 0, 0, 0)


def test_a_region_with_memory_says_how_much_it_has_to_tell(client: FakeClient) -> None:
    needed, flags, index, at, _, _ = region_info(client, 2)
    assert (needed, index) == (FULL_INFO, 2)
    assert flags == READABLE | WRITABLE | MAPPABLE | CAPABILITIES
    assert at == 32


def test_memory_of_a_region_can_be_mapped(client: FakeClient) -> None:
    query = struct.pack("<IIIIQQ", FULL_INFO, 0, 2, 0, 0, 0)
    got = client.reply_to(client.send(REGION_INFO, query))
    assert len(got.payload) == FULL_INFO
    assert struct.unpack_from("<HHIII", got.payload, 32) == (1, 1, 0, 2, 0)
    areas = list(struct.iter_unpack("<QQ", got.payload[48:]))
    assert areas == [(0, MIB), (MIB + PAGE, PAGE)]
    (fd,) = got.fds
    with mmap.mmap(fd, PAGE, offset=MIB + PAGE) as memory:
        memory[8:12] = b"seen"
        assert client.read_block(2, MIB + PAGE + 8, 4) == b"seen"
        client.write(2, MIB + PAGE + 12, 4, 0x01020304)
        assert memory[12:16] == b"\4\3\2\1"
    os.close(fd)


def test_no_descriptor_comes_with_a_cut_reply(client: FakeClient) -> None:
    query = struct.pack("<IIIIQQ", FULL_INFO - 1, 0, 2, 0, 0, 0)
    got = client.reply_to(client.send(REGION_INFO, query))
    assert (len(got.payload), got.fds) == (32, [])


def test_no_region_has_descriptors_for_writes(client: FakeClient) -> None:
    reply = client.ask(REGION_IO_FDS, struct.pack("<IIII", 1000, 0, 0, 0))
    assert struct.unpack("<IIII", reply) == (16, 0, 0, 0)


def test_interrupts_are_as_many_as_the_card_has(client: FakeClient) -> None:
    found = []
    for index in range(IRQS):
        reply = client.ask(IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
        size, flags, same, count = struct.unpack("<IIII", reply)
        assert (size, same) == (16, index)
        assert flags & 1
        assert bool(flags & 6) == (index == INTX)
        found.append(count)
    assert found == [1, 4, 24, 0, 0]
    assert (found[INTX], found[MSI], found[MSIX]) == (1, 4, 24)


# Registers.


@pytest.mark.parametrize("count", range(1, 9))
def test_an_access_may_have_any_size_up_to_8_bytes(client: FakeClient, count: int) -> None:
    client.write(0, SCRATCH, 8, 0x8877665544332211)
    for offset in range(9 - count):
        expected = 0x8877665544332211 >> 8 * offset & (1 << 8 * count) - 1
        assert client.read(0, SCRATCH + offset, count) == expected
    client.write(0, SCRATCH, count, 0)
    assert client.read(0, SCRATCH, 8) == 0x8877665544332211 >> 8 * count << 8 * count


@pytest.mark.parametrize("region", [0, 2, 4])
@pytest.mark.parametrize("count", [1, 4, 8, 64])
def test_accesses_end_at_the_end_of_a_region(client: FakeClient, region: int, count: int) -> None:
    size = region_info(client, region)[4]
    client.read_block(region, size - count, count)
    client.write_block(region, size - count, bytes(count))
    for offset in (size - count + 1, size, 1 << 63, (1 << 64) - 1):
        with pytest.raises(RefusedError, match="EINVAL"):
            client.ask(REGION_READ, access(offset, region, count))
        with pytest.raises(RefusedError, match="EINVAL"):
            client.ask(REGION_WRITE, access(offset, region, count) + bytes(count))


@pytest.mark.parametrize("region", [1, 5, ROM, VGA, 9, (1 << 32) - 1])
def test_a_region_that_the_card_has_not_cannot_be_accessed(client: FakeClient, region: int) -> None:
    for request in (REGION_READ, access(0, region, 4)), (
        REGION_WRITE, access(0, region, 4) + bytes(4),
    ):  # fmt: skip
        with pytest.raises(RefusedError, match="EINVAL"):
            client.ask(*request)


def test_no_bytes_cannot_be_accessed(client: FakeClient) -> None:
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(REGION_READ, access(0, 0, 0))
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(REGION_WRITE, access(0, 0, 0))


@pytest.mark.parametrize("data", [b"", b"abc", b"abcde"])
def test_a_write_brings_as_much_as_it_says(client: FakeClient, data: bytes) -> None:
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(REGION_WRITE, access(SCRATCH, 0, 4) + data)
    assert client.read(0, SCRATCH) == 0


def test_an_exception_of_the_card_gives_all_ones(client: FakeClient, card: Board) -> None:
    assert client.read(0, BROKEN) == 0xFFFFFFFF
    assert card.endpoint.error_count == 1


def test_without_memory_space_enable_nobody_answers(server: VfioUserServer) -> None:
    with FakeClient(server.paths[0]) as client:
        assert client.read(0, SCRATCH) == 0xFFFFFFFF
        client.enable()
        assert client.read(0, SCRATCH) == 0


def test_blocks_reach_registers_and_memory(client: FakeClient, card: Board) -> None:
    client.write_block(0, SCRATCH, bytes(range(8)) + struct.pack("<I", 77))
    assert card.noted == [77]
    assert client.read_block(0, SCRATCH, 12) == bytes(range(8)) + struct.pack("<I", 77)
    client.write_block(2, MIB - 4, b"\1" * 4 + b"\2" * PAGE + b"\3" * 4)
    assert client.read_block(2, MIB - 4, 8)[:4] == b"\1" * 4
    assert client.read_block(2, MIB + PAGE, 8) == b"\3" * 4 + bytes(4)


def test_posted_writes_are_done_before_the_read_behind_them(
    client: FakeClient, card: Board
) -> None:
    for value in range(200):
        client.write(0, NOTED, 4, value, posted=True)
    assert client.read(0, NOTED) == 199
    assert card.noted == list(range(200))


def test_writes_may_come_in_one_message(client: FakeClient, card: Board) -> None:
    writes = [(NOTED, 0, 4, 11), (SCRATCH, 0, 8, 1 << 60), (NOTED, 0, 2, 12), (4, CONFIG, 2, 2)]
    payload = struct.pack("<Q", 4) + b"".join(struct.pack("<QIIQ", *write) for write in writes)
    assert client.ask(WRITE_MULTI, payload) == struct.pack("<Q", 4)
    assert card.noted == [11, 12]
    assert client.read(0, SCRATCH, 8) == 1 << 60
    assert client.read(CONFIG, 4, 2) == 2


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        struct.pack("<Q", 1),
        struct.pack("<Q", 1) + bytes(23),
        struct.pack("<Q", 1 << 63) + bytes(24),
        struct.pack("<QQIIQ", 1, 0, 0, 9, 0),
        struct.pack("<QQIIQ", 1, 0, 0, 0, 0),
        struct.pack("<QQIIQ", 1, 0x1000, 0, 4, 0),
        struct.pack("<QQIIQ", 1, 0, 99, 4, 0),
    ],
)
def test_writes_in_one_message_are_checked(client: FakeClient, payload: bytes) -> None:
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(WRITE_MULTI, payload)


def test_posted_writes_in_one_message_stay_in_order_with_others(
    client: FakeClient, card: Board
) -> None:
    for value in range(0, 90, 3):
        client.write(0, NOTED, 4, value, posted=True)
        two = [struct.pack("<QIIQ", NOTED, 0, 4, value + more) for more in (1, 2)]
        client.send(WRITE_MULTI, struct.pack("<Q", 2) + b"".join(two), flags=NO_REPLY)
    client.read(0, NOTED)
    assert card.noted == list(range(90))


# Configuration space.


def test_configuration_space_is_read_at_any_place(client: FakeClient) -> None:
    whole = client.read_block(CONFIG, 0, 256)
    assert struct.unpack_from("<HH", whole) == (Board.vendor_id, Board.device_id)
    for offset, count in ((0, 1), (1, 3), (3, 8), (0x2E, 2), (250, 6), (255, 1)):
        assert client.read_block(CONFIG, offset, count) == whole[offset : offset + count]
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(REGION_READ, access(254, CONFIG, 4))


def test_configuration_space_is_written_as_the_card_allows(client: FakeClient) -> None:
    client.write(CONFIG, 0, 4, 0xFFFFFFFF)
    assert client.read(CONFIG, 0, 2) == Board.vendor_id
    client.write(CONFIG, 0x10, 4, 0xFFFFFFFF)
    assert client.read(CONFIG, 0x10, 4) == 0xFFFFF000
    client.write(CONFIG, 0x3C, 1, 0x0B)
    assert client.read(CONFIG, 0x3C, 1) == 0x0B


# Reset.


def test_a_reset_puts_registers_back(client: FakeClient, card: Board) -> None:
    client.write(0, SCRATCH, 4, 5)
    assert not client.ask(RESET)
    assert card.resets == [ResetKind.POWER_ON, ResetKind.HOT]
    client.enable()
    assert client.read(0, SCRATCH) == 0
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(RESET, b"x")
