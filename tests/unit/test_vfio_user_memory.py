"""The vfio-user server: the client's memory, shared or reached by messages."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.unit.fake_vfio_client import (
    ACT,
    BUS_MASTER,
    COMMAND_REGISTER,
    CONFIG,
    DMA_MAP,
    DMA_READ,
    DMA_UNMAP,
    DMA_WRITE,
    MEMORY_SPACE,
    NOTED,
    PAGE,
    REGION_READ,
    REGION_WRITE,
    REPLY,
    Board,
    ClientMemory,
    FakeClient,
    Got,
    Plugs,
    RefusedError,
    access,
    descriptors,
    dma_map,
    dma_unmap,
    in_thread,
    served,
)

from softcard import DmaError
from softcard.bus.vfio_user import VfioUserServer
from softcard.wire.address import NetworkAddress

AT = 0x10000
READABLE, WRITABLE = 1, 2
TOP = (1 << 64) - PAGE


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


@pytest.fixture
def memory() -> Iterator[ClientMemory]:
    with ClientMemory(4 * PAGE) as memory:
        yield memory


# Shared memory.


def test_the_card_reads_and_writes_shared_memory(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.map(memory, AT, offset=PAGE, size=2 * PAGE)
    memory.view[PAGE : PAGE + 4] = b"ping"
    assert card.dma.read(AT, 4) == b"ping"
    card.dma.write(AT + 2 * PAGE - 4, b"pong")
    assert bytes(memory.view[3 * PAGE - 4 : 3 * PAGE]) == b"pong"
    card.dma.map(AT + 8, 8)[:] = b"mapped!!"
    assert bytes(memory.view[PAGE + 8 : PAGE + 16]) == b"mapped!!"
    assert card.dma.fetch_add(AT + 16, 8, 5) == 0
    assert memory.view[PAGE + 16] == 5
    # What is around was never touched.
    assert bytes(memory.view[:PAGE]) == bytes(memory.view[3 * PAGE :]) == bytes(PAGE)


@pytest.mark.parametrize(
    ("address", "length"),
    [(AT - 1, 1), (AT - 1, 2), (AT + PAGE - 1, 2), (AT + PAGE, 1), (0, 1), (1 << 63, 8)],
)
def test_memory_that_was_not_mapped_cannot_be_reached(
    client: FakeClient, card: Board, memory: ClientMemory, address: int, length: int
) -> None:
    client.map(memory, AT, size=PAGE)
    for attempt in (
        lambda: card.dma.read(address, length),
        lambda: card.dma.write(address, bytes(length)),
        lambda: card.dma.map(address, length),
    ):
        with pytest.raises(DmaError):
            attempt()


def test_memory_is_reached_as_its_flags_allow(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.map(memory, AT, size=PAGE, flags=READABLE)
    client.map(memory, 2 * AT, size=PAGE, flags=WRITABLE)
    client.map(memory, 3 * AT, size=PAGE, flags=0)
    assert card.dma.read(AT, 4) == bytes(4)
    card.dma.write(2 * AT, b"x")
    for attempt in (
        lambda: card.dma.write(AT, b"x"),
        lambda: card.dma.map(AT, 1),
        lambda: card.dma.read(2 * AT, 1),
        lambda: card.dma.read(3 * AT, 1),
        lambda: card.dma.write(3 * AT, b"x"),
    ):
        with pytest.raises(DmaError, match="does not allow"):
            attempt()


def test_a_read_only_file_can_be_shared_for_reading_alone(
    client: FakeClient, card: Board, tmp_path: Path
) -> None:
    (tmp_path / "rom").write_bytes(b"rom!" * 1024)
    with (tmp_path / "rom").open("rb") as file:
        with pytest.raises(RefusedError, match="EACCES"):
            client.ask(DMA_MAP, dma_map(AT, PAGE), fds=[file.fileno()])
        client.ask(DMA_MAP, dma_map(AT, PAGE, flags=READABLE), fds=[file.fileno()])
    assert card.dma.read(AT, 4) == b"rom!"


@pytest.mark.parametrize(
    ("address", "size"),
    [(AT, PAGE), (AT - PAGE, 2 * PAGE), (AT + PAGE, PAGE), (AT - PAGE, 5 * PAGE), (AT + 1, 1)],
)
def test_memory_that_overlaps_is_refused(
    client: FakeClient, memory: ClientMemory, address: int, size: int
) -> None:
    client.map(memory, AT, size=2 * PAGE)
    before = descriptors()
    with pytest.raises(RefusedError, match="EEXIST"):
        client.ask(DMA_MAP, dma_map(address, size))
    with pytest.raises(RefusedError, match="EEXIST"):
        client.ask(DMA_MAP, dma_map(address, min(size, memory.size)), fds=[memory.fd])
    assert descriptors() == before
    client.map(memory, AT - PAGE, size=PAGE)
    client.map(memory, AT + 2 * PAGE, size=PAGE)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        dma_map(AT, PAGE)[:-1],
        dma_map(AT, PAGE) + b"x",
        dma_map(AT, 0),
        dma_map(AT, PAGE, flags=7),
        dma_map(AT, PAGE, offset=1),
        dma_map(AT, PAGE, offset=4 * PAGE),
        dma_map(AT, PAGE, offset=(1 << 64) - PAGE),
        dma_map(AT, 4 * PAGE + 1),
        dma_map(AT, (1 << 63) - PAGE),
        dma_map(TOP, 2 * PAGE),
    ],
)
def test_a_wrong_map_is_refused(
    client: FakeClient, card: Board, memory: ClientMemory, payload: bytes
) -> None:
    before = descriptors()
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(DMA_MAP, payload, fds=[memory.fd])
    assert descriptors() == before
    with pytest.raises(DmaError):
        card.dma.read(AT, 1)


def test_what_is_no_file_cannot_be_shared(client: FakeClient) -> None:
    reading, writing = os.pipe()
    event, folder = os.eventfd(0), os.open("/", os.O_RDONLY)
    files = (reading, writing, event, folder, client.socket.fileno())
    before = descriptors()
    for fd in files:
        with pytest.raises(RefusedError):
            client.ask(DMA_MAP, dma_map(AT, PAGE), fds=[fd])
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(DMA_MAP, dma_map(AT, PAGE), fds=[event, event])
    assert descriptors() == before
    for fd in files[:-1]:
        os.close(fd)


def test_the_last_page_of_all_can_be_mapped(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.map(memory, TOP, size=PAGE)
    card.dma.write(TOP + PAGE - 1, b"!")
    assert memory.view[PAGE - 1] == ord("!")
    client.unmap(TOP, PAGE)


@pytest.mark.parametrize(
    "payload",
    [
        dma_unmap(AT, PAGE),
        dma_unmap(AT + PAGE, PAGE),
        dma_unmap(0, (1 << 64) - 1),
        dma_unmap(AT, 3 * PAGE),
    ],
)
def test_memory_is_unmapped_as_it_was_mapped(
    client: FakeClient, card: Board, memory: ClientMemory, payload: bytes
) -> None:
    client.map(memory, AT, size=2 * PAGE)
    with pytest.raises(RefusedError, match="ENOENT"):
        client.ask(DMA_UNMAP, payload)
    assert card.dma.read(AT, 4) == bytes(4)
    for wrong in (b"", payload[:-1], dma_unmap(AT, 2 * PAGE, flags=2)):
        with pytest.raises(RefusedError, match="EINVAL"):
            client.ask(DMA_UNMAP, wrong)
    client.unmap(AT, 2 * PAGE)
    with pytest.raises(RefusedError, match="ENOENT"):
        client.ask(DMA_UNMAP, dma_unmap(AT, 2 * PAGE))
    assert card.removed == [(AT, 2 * PAGE)]


def test_views_lead_nowhere_after_the_unmap(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    memory.view[:4] = b"mine"
    client.map(memory, AT)
    view = card.dma.map(AT, memory.size)
    before = descriptors()
    client.unmap(AT, memory.size)
    assert bytes(view[:4]) == bytes(4)
    view[:4] = b"evil"
    assert bytes(memory.view[:4]) == b"mine"
    with pytest.raises(DmaError):
        card.dma.read(AT, 4)
    view.release()
    assert descriptors() < before


def test_views_lead_nowhere_after_the_client_has_gone(
    card: Board, memory: ClientMemory, tmp_path: Path
) -> None:
    plugs = Plugs()
    with served(card, tmp_path, changed=plugs) as server:
        with FakeClient(server.paths[0]) as client:
            client.enable()
            client.map(memory, AT)
            view = card.dma.map(AT, 4)
            view[:] = b"mine"
        plugs.wait(connected=False)
        view[:] = b"evil"
    assert bytes(memory.view[:4]) == b"mine"
    assert card.removed == [(AT, memory.size)]


def test_a_file_that_is_cut_short_harms_nobody(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.map(memory, AT)
    view = card.dma.map(AT + PAGE, PAGE)
    os.ftruncate(memory.fd, 0)
    for attempt in (lambda: card.dma.read(AT, 4), lambda: card.dma.write(AT, b"x")):
        with pytest.raises(DmaError, match="cut its memory short"):
            attempt()
    assert bytes(view) == bytes(PAGE)
    view[:4] = b"void"
    with pytest.raises(DmaError, match="cut its memory short"):
        card.dma.map(AT, 4)
    client.unmap(AT, memory.size)
    assert client.read(0, NOTED) == 0


def test_an_access_of_a_device_to_a_file_cut_short_is_survived(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.map(memory, AT)
    view = card.dma.map(AT, memory.size)
    os.ftruncate(memory.fd, PAGE)
    copies = [in_thread(lambda: bytes(view)) for _ in range(4)]
    assert all(copy() == bytes(memory.size) for copy in copies)


def test_many_regions_come_and_go(client: FakeClient, card: Board) -> None:
    count = 3000
    for index in range(count):
        client.ask(DMA_MAP, dma_map(2 * index * PAGE, PAGE))
    for index in range(0, count, 2):
        client.unmap(2 * index * PAGE, PAGE)
    assert len(card.removed) == count // 2
    client.ask(DMA_MAP, dma_map(0, PAGE))
    with pytest.raises(RefusedError, match="EEXIST"):
        client.ask(DMA_MAP, dma_map(2 * PAGE, PAGE))


# Memory without a file: the server asks for it.


def serve_dma(client: FakeClient, memory: ClientMemory) -> Got:
    """Answer one DMA_READ or DMA_WRITE, as a client that has `memory` at AT."""
    got = client.receive()
    address, count = struct.unpack_from("<QQ", got.payload)
    start = address - AT
    if got.command == DMA_READ:
        client.answer(got, got.payload + memory.view[start : start + count])
    else:
        assert got.command == DMA_WRITE
        memory.view[start : start + count] = got.payload[16:]
        client.answer(got, got.payload[:16])
    return got


def test_memory_without_a_file_is_reached_by_messages(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    memory.view[:4] = b"ping"
    read = in_thread(lambda: card.dma.read(AT, 4))
    serve_dma(client, memory)
    assert read() == b"ping"
    write = in_thread(lambda: card.dma.write(AT + 4, b"pong"))
    serve_dma(client, memory)
    write()
    assert bytes(memory.view[4:8]) == b"pong"
    with pytest.raises(DmaError, match="does not share"):
        card.dma.map(AT, 4)
    assert not card.dma.shared


def test_a_long_transfer_goes_in_pieces_that_the_client_takes(
    server: VfioUserServer, card: Board, memory: ClientMemory
) -> None:
    offer = {"capabilities": {"max_data_xfer_size": 1000}}
    with FakeClient(server.paths[0], offer) as client:
        client.enable()
        client.ask(DMA_MAP, dma_map(AT, memory.size))
        data = bytes(range(256)) * 16
        write = in_thread(lambda: card.dma.write(AT, data))
        counts = [
            struct.unpack_from("<8xQ", serve_dma(client, memory).payload)[0] for _ in range(5)
        ]
        write()
        assert counts == [1000, 1000, 1000, 1000, 96]
        read = in_thread(lambda: card.dma.read(AT, PAGE))
        for _ in range(5):
            serve_dma(client, memory)
        assert read() == data


def test_commands_that_come_while_the_card_waits_for_memory_stay_in_order(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    card.action = lambda: (card.dma.read(AT, 4), list(card.noted))
    client.write(0, ACT, 4, 1, posted=True)
    asked = client.receive()
    for value in range(50):
        client.write(0, NOTED, 4, value, posted=True)
    ident = client.send(REGION_READ, access(NOTED, 0, 4))
    client.answer(asked, asked.payload + b"data")
    assert client.reply_to(ident).payload[16:] == struct.pack("<I", 49)
    assert card.result == (b"data", [])
    assert card.noted == list(range(50))


def test_commands_are_served_while_another_thread_waits_for_memory(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    read = in_thread(lambda: card.dma.read(AT, 4))
    asked = client.receive()
    for value in range(20):
        client.write(0, NOTED, 4, value)
        assert client.read(0, NOTED) == value
    client.answer(asked, asked.payload + b"late")
    assert read() == b"late"


def test_many_threads_may_wait_for_memory(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    memory.view[:] = bytes(index // 16 & 0xFF for index in range(memory.size))
    rounds, threads = 20, 8

    def read(index: int) -> bool:
        at = 16 * index
        return all(card.dma.read(AT + at, 16) == memory.view[at : at + 16] for _ in range(rounds))

    reads = [in_thread(partial(read, index)) for index in range(threads)]
    for _ in range(rounds):
        # The last one first.
        for got in reversed([client.receive() for _ in range(threads)]):
            address, count = struct.unpack("<QQ", got.payload)
            client.answer(got, got.payload + memory.view[address - AT :][:count])
    assert all(join() for join in reads)


@pytest.mark.parametrize("error", [0, errno.EFAULT, (1 << 32) - 1])
def test_a_client_may_refuse_a_transfer(
    client: FakeClient, card: Board, memory: ClientMemory, error: int
) -> None:
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    read = in_thread(lambda: card.dma.read(AT, 4))
    got = client.receive()
    client.socket.sendall(struct.pack("<HHIII", got.ident, got.command, 16, REPLY | 0x20, error))
    with pytest.raises(DmaError, match="the client refuses"):
        read()
    assert client.read(0, NOTED) == 0


def test_a_reply_of_another_length_is_an_error_of_that_transfer(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    read = in_thread(lambda: card.dma.read(AT, 4))
    got = client.receive()
    client.answer(got, got.payload + b"too long")
    with pytest.raises(DmaError, match="24 bytes"):
        read()
    assert client.read(0, NOTED) == 0


def test_a_reply_may_come_when_nobody_waits_any_more(
    client: FakeClient, card: Board, memory: ClientMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softcard.wire.messages.REPLY_TIMEOUT", 0.05)
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    read = in_thread(lambda: card.dma.read(AT, 4))
    got = client.receive()
    with pytest.raises(DmaError, match="no reply"):
        read()
    client.answer(got, got.payload + b"late")
    assert client.read(0, NOTED) == 0
    client.answer(got, got.payload + b"late")
    assert client.hung_up()


def test_a_client_that_never_answers_does_not_stop_the_card(
    client: FakeClient, card: Board, memory: ClientMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softcard.wire.messages.REPLY_TIMEOUT", 0.05)
    client.ask(DMA_MAP, dma_map(AT, 1 << 30))
    # Many requests at once, none answered: that costs one wait and not one each.
    card.action = lambda: card.dma.read(AT, 64 << 20)
    client.write(0, ACT, 4, 1)
    (error,) = card.endpoint.errors
    assert isinstance(error.exception, DmaError)
    assert client.read(0, NOTED) == 0


def test_a_client_that_goes_ends_what_waits_for_it(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    reads = [in_thread(lambda: card.dma.read(AT, 4)) for _ in range(3)]
    for _ in reads:
        client.receive()
    client.close()
    for read in reads:
        with pytest.raises(DmaError):
            read()


def test_a_mapping_that_goes_while_it_is_asked_for_is_no_deadlock(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.ask(DMA_MAP, dma_map(AT, memory.size))
    read = in_thread(lambda: card.dma.read(AT, 4))
    got = client.receive()
    client.unmap(AT, memory.size)
    client.answer(got, error=errno.EFAULT)
    with pytest.raises(DmaError):
        read()


def test_shared_memory_and_other_may_be_mixed(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.ask(DMA_MAP, dma_map(AT, PAGE))
    client.map(memory, AT + PAGE, offset=PAGE, size=PAGE)
    memory.view[PAGE - 4 : PAGE + 4] = b"farnear!"
    assert card.dma.read(AT + PAGE, 4) == b"ear!"
    read = in_thread(lambda: card.dma.read(AT + PAGE - 4, 4))
    serve_dma(client, memory)
    assert read() == b"farn"
    assert card.dma.shared


def test_no_memory_is_reached_without_bus_master_enable(
    client: FakeClient, card: Board, memory: ClientMemory
) -> None:
    client.map(memory, AT)
    client.write(CONFIG, COMMAND_REGISTER, 2, MEMORY_SPACE)
    with pytest.raises(DmaError, match="bus master"):
        card.dma.read(AT, 4)
    client.write(CONFIG, COMMAND_REGISTER, 2, MEMORY_SPACE | BUS_MASTER)
    card.dma.read(AT, 4)


def test_without_descriptors_memory_is_reached_by_messages(
    card: Board, memory: ClientMemory, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = VfioUserServer(card, NetworkAddress("tcp", "127.0.0.1", port))
    try:
        with FakeClient(socket.create_connection(("127.0.0.1", port))) as client:
            client.enable()
            client.ask(DMA_MAP, dma_map(AT, memory.size))
            memory.view[:4] = b"ping"
            read = in_thread(lambda: card.dma.read(AT, 4))
            serve_dma(client, memory)
            assert read() == b"ping"
    finally:
        server.stop()


def test_a_client_whose_counts_have_32_bits_is_told_by_its_first_data(tmp_path: Path) -> None:
    """As the first ones in QEMU; their data begins where the specification has a count's end."""
    card = Board()
    with served(card, tmp_path) as server, FakeClient(server.paths[0]) as client:
        client.enable()
        client.ask(DMA_MAP, dma_map(0x1000, PAGE))
        card.action = lambda: card.dma.write(0x1010, card.dma.read(0x1000, 6)[::-1])
        client.send(REGION_WRITE, access(ACT, 0, 4) + bytes(4))
        read = client.receive()
        assert (read.command, read.payload) == (DMA_READ, struct.pack("<QQ", 0x1000, 6))
        client.answer(read, struct.pack("<QI", 0x1000, 6) + b"a\0\0def" + b"junk")
        write = client.receive()
        assert write.command == DMA_WRITE
        assert write.payload == struct.pack("<QI", 0x1010, 6) + b"fed\0\0a" + bytes(4)
        client.answer(write, write.payload[:16])
        assert client.receive().command == REGION_WRITE
