"""The vfio-user server: negotiation, and messages in the pieces that they come in."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.fake_vfio_client import (
    CONFIG,
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    ERROR,
    HEADER,
    NO_REPLY,
    NOTED,
    PAGE,
    QEMU_CAPABILITIES,
    REGION_READ,
    REGION_WRITE,
    REPLY,
    RESET,
    SCRATCH,
    VERSION,
    Board,
    ClientMemory,
    FakeClient,
    RefusedError,
    access,
    descriptors,
    dma_map,
    dma_unmap,
    pack,
    served,
    version,
)

from softcard.bus.vfio_user import VfioUserServer

BIGGEST = 1 << 20


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


def bare(server: VfioUserServer) -> FakeClient:
    """A client that has said nothing yet."""
    return FakeClient(server.paths[0], capabilities=None)


# Negotiation.


@pytest.mark.parametrize(
    "data",
    [None, {}, {"capabilities": {}}, {"something": "else"}, {"capabilities": {"unheard_of": [1]}}],
)
def test_a_version_without_known_capabilities_is_accepted(
    server: VfioUserServer, data: object
) -> None:
    with bare(server) as client:
        assert client.ask(VERSION, version(data))[:4] == bytes(4)
        client.ask(DEVICE_INFO, struct.pack("<IIII", 16, 0, 0, 0))


def test_the_reply_to_a_version_is_never_longer_than_the_request(server: VfioUserServer) -> None:
    for request in (
        version(None),
        version({}),
        version({"capabilities": {"write_multiple": True}}),
        version(QEMU_CAPABILITIES),
    ):
        with bare(server) as client:
            assert len(client.ask(VERSION, request)) <= len(request)


def test_a_version_ends_with_nul_and_offers_what_the_client_has(server: VfioUserServer) -> None:
    with bare(server) as client:
        reply = client.ask(VERSION, version(QEMU_CAPABILITIES))
        assert reply.endswith(b"\0")
        assert b'"write_multiple":true' in reply
        assert b"softcard_interrupts" not in reply
    with bare(server) as client:
        assert b"write_multiple" not in client.ask(VERSION, version({"capabilities": {}}))


@pytest.mark.parametrize(("asked", "agreed"), [(0, 0), (1, 1), (7, 1)])
def test_the_minor_version_is_at_most_both(server: VfioUserServer, asked: int, agreed: int) -> None:
    for data in (None, QEMU_CAPABILITIES):
        with bare(server) as client:
            reply = client.ask(VERSION, version(data, minor=asked))
            assert struct.unpack_from("<HH", reply) == (0, agreed)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        version(None, major=1),
        bytes(4) + b"{",
        bytes(4) + b"\xff\xfe\0",
        bytes(4) + b"[" * 5000,
        version([]),
        version({"capabilities": 5}),
        version({"capabilities": {"max_data_xfer_size": 0}}),
        version({"capabilities": {"max_data_xfer_size": "1"}}),
        version({"capabilities": {"max_data_xfer_size": True}}),
    ],
)
def test_a_wrong_version_ends_the_connection(server: VfioUserServer, payload: bytes) -> None:
    with bare(server) as client:
        client.send(VERSION, payload)
        assert client.hung_up()


def test_nothing_comes_before_the_version(server: VfioUserServer, card: Board) -> None:
    with bare(server) as client:
        client.send(REGION_READ, access(0, 0, 4))
        assert client.hung_up()


def test_a_second_version_is_refused(client: FakeClient) -> None:
    with pytest.raises(RefusedError, match="ENOTSUP"):
        client.ask(VERSION, version({}))


# Framing.


def test_messages_may_come_byte_by_byte(client: FakeClient) -> None:
    message = pack(REGION_WRITE, access(SCRATCH, 0, 4) + b"abcd", ident=7)
    message += pack(REGION_READ, access(SCRATCH, 0, 4), ident=8)
    for at in range(len(message)):
        client.socket.sendall(message[at : at + 1])
    assert client.reply_to(7).payload == access(SCRATCH, 0, 4)
    assert client.reply_to(8).payload[16:] == b"abcd"


def test_many_messages_may_come_at_once(client: FakeClient, card: Board) -> None:
    writes = [
        pack(REGION_WRITE, access(NOTED, 0, 4) + struct.pack("<I", value), flags=NO_REPLY)
        for value in range(5000)
    ]
    client.socket.sendall(b"".join(writes))
    assert client.read(0, NOTED) == 4999
    assert card.noted == list(range(5000))


def test_reads_in_great_number_are_answered_in_order(client: FakeClient) -> None:
    count = 3000
    client.write(0, SCRATCH, 4, 0x5EED)
    reads = [pack(REGION_READ, access(SCRATCH, 0, 4), ident=ident) for ident in range(count)]
    client.socket.sendall(b"".join(reads))
    for ident in range(count):
        got = client.receive()
        assert (got.ident, got.payload[16:]) == (ident, struct.pack("<I", 0x5EED))


def test_a_block_may_be_as_long_as_the_protocol_allows(client: FakeClient) -> None:
    data = bytes(range(256)) * (BIGGEST // 256)
    client.write_block(2, 0, data)
    assert client.read_block(2, 0, BIGGEST) == data
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(REGION_READ, access(0, 2, BIGGEST + 1))


@pytest.mark.parametrize("size", [0, 15, (1 << 32) - 1, 2 * BIGGEST])
def test_an_impossible_size_ends_the_connection(client: FakeClient, size: int) -> None:
    client.socket.sendall(pack(REGION_READ, access(0, 0, 4), size=size))
    assert client.hung_up()


@pytest.mark.parametrize("flags", [REPLY, REPLY | ERROR, 2, 15])
def test_a_message_that_is_no_command_ends_the_connection(client: FakeClient, flags: int) -> None:
    client.socket.sendall(pack(REGION_READ, flags=flags, ident=3))
    assert client.hung_up()


@pytest.mark.parametrize("command", [0, DMA_MAP + 9, 14, 99, 0xFFFF])
def test_an_unknown_command_costs_an_error_and_no_more(client: FakeClient, command: int) -> None:
    with pytest.raises(RefusedError):
        client.ask(command, b"x" * 32)
    assert client.read(CONFIG, 0, 2) == Board.vendor_id


def test_a_reply_names_command_and_id(client: FakeClient) -> None:
    got = client.reply_to(client.send(REGION_READ, access(0, CONFIG, 4)))
    assert (got.command, got.flags, got.error) == (REGION_READ, REPLY, 0)
    client.send(REGION_READ, access(0, 0, 0))
    got = client.receive()
    assert (got.command, got.flags, got.payload) == (REGION_READ, REPLY | ERROR, b"")
    assert (got.ident, got.error) == (client.ident, errno.EINVAL)


def test_nothing_is_said_about_what_wants_no_reply(client: FakeClient) -> None:
    client.send(REGION_READ, access(0, 0, 4), flags=NO_REPLY)
    client.send(99, flags=NO_REPLY)
    client.send(REGION_READ, access(0, 77, 4), flags=NO_REPLY)
    client.ask(DEVICE_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert not client.waiting


# Descriptors.


def test_descriptors_belong_to_the_message_that_they_came_with(client: FakeClient) -> None:
    with ClientMemory() as first, ClientMemory() as second:
        client.map(first, 0x10000)
        before = descriptors()
        # One receive takes both; the descriptor is the second one's.
        client.socket.sendall(pack(DMA_UNMAP, dma_unmap(0x10000, PAGE), ident=1))
        client.send(DMA_MAP, dma_map(0x20000, PAGE), fds=[second.fd])
        assert client.reply_to(1).payload == dma_unmap(0x10000, PAGE)
        client.reply_to(client.ident)
        assert descriptors() == before
        client.unmap(0x20000, PAGE)


def test_descriptors_may_come_with_any_piece_of_their_message(
    client: FakeClient, card: Board
) -> None:
    with ClientMemory() as memory:
        memory.view[:4] = b"here"
        message = pack(DMA_MAP, dma_map(0x10000, PAGE), ident=1)
        client.socket.sendall(message[:20])
        client.socket.sendmsg([message[20:30]], [(1, 1, struct.pack("<i", memory.fd))])
        client.socket.sendall(message[30:])
        client.reply_to(1)
        assert card.dma.read(0x10000, 4) == b"here"


@pytest.mark.parametrize("command", [VERSION, *range(3, 8), REGION_READ, REGION_WRITE, RESET, 99])
def test_descriptors_that_nobody_wants_are_closed(client: FakeClient, command: int) -> None:
    before = descriptors()
    query = struct.pack("<IIII", 32, 0, 0, 0)
    with ClientMemory() as memory, pytest.raises(RefusedError):
        client.ask(command, query + bytes(16), fds=[memory.fd] * 3)
    assert descriptors() == before


def test_descriptors_with_the_version_are_refused(server: VfioUserServer) -> None:
    with bare(server) as client, ClientMemory() as memory:
        held = []
        for _ in range(3):
            with pytest.raises(RefusedError, match="EINVAL"):
                client.ask(VERSION, version({}), fds=[memory.fd])
            held.append(descriptors())
        assert held == held[:1] * 3
        client.ask(VERSION, version({}))


def test_more_descriptors_than_allowed_end_the_connection(client: FakeClient) -> None:
    with ClientMemory() as memory:
        client.send(DMA_MAP, dma_map(0x10000, PAGE), fds=[memory.fd] * 20)
        assert client.hung_up()


def test_descriptors_without_end_end_the_connection(client: FakeClient) -> None:
    with ClientMemory() as memory:
        client.socket.sendall(HEADER.pack(0, REGION_WRITE, BIGGEST, 0, 0))
        with pytest.raises(OSError):
            for _ in range(10000):
                client.socket.sendmsg([b"x"], [(1, 1, struct.pack("<16i", *[memory.fd] * 16))])
