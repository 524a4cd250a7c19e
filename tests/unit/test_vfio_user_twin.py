"""The server's commands on a second socket."""

from __future__ import annotations

import json
import mmap
import select
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.unit.fake_vfio_client import (
    ACT,
    DMA_MAP,
    DMA_READ,
    DMA_WRITE,
    EVENTFD,
    INTERRUPT,
    INTERRUPT_NOW,
    INTX,
    NO_REPLY,
    QEMU_CAPABILITIES,
    REGION_READ,
    SCRATCH,
    SET_IRQS,
    TIMEOUT,
    TRIGGER,
    VERSION,
    Board,
    FakeClient,
    Got,
    Plugs,
    access,
    descriptors,
    dma_map,
    in_thread,
    served,
    set_irqs,
    version,
)

from softcard import DmaError
from softcard.bus.vfio_user import VfioUserServer
from softcard.wire import messages
from softcard.wire.address import parse_address

AT = 0x10000
TWIN: dict[str, object] = {"twin_socket": {"supported": True}}
# Requests that are shorter than this have no room for the reply.
PADDING: dict[str, object] = {"pgsizes": 4096, "max_data_xfer_size": 1 << 20}


@pytest.fixture
def card() -> Board:
    return Board()


@pytest.fixture
def plugs() -> Plugs:
    return Plugs()


@pytest.fixture
def server(card: Board, plugs: Plugs, tmp_path: Path) -> Iterator[VfioUserServer]:
    with served(card, tmp_path, changed=plugs) as server:
        yield server


def greet(client: FakeClient, capabilities: dict[str, object]) -> Got:
    return client.reply_to(client.send(VERSION, version({"capabilities": capabilities})))


def agreed(got: Got) -> dict[str, object]:
    data = json.loads(got.payload[4:].rstrip(b"\0") or b"{}")
    capabilities: dict[str, object] = data.get("capabilities", {})
    return capabilities


class TwinClient:
    """A client with a second socket, and memory that it does not share."""

    def __init__(self, server: VfioUserServer, **more: object) -> None:
        self.main = FakeClient(server.paths[0], capabilities=None)
        got = greet(self.main, PADDING | TWIN | more)
        (fd,) = got.fds
        assert agreed(got)["twin_socket"] == {"supported": True, "fd_index": 0}
        self.twin = FakeClient(socket.socket(fileno=fd), capabilities=None)
        self.main.enable()
        self.main.ask(DMA_MAP, dma_map(AT, mmap.PAGESIZE))

    def __enter__(self) -> TwinClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.main.close()
        self.twin.close()


@pytest.fixture
def client(server: VfioUserServer) -> Iterator[TwinClient]:
    with TwinClient(server) as client:
        yield client


def test_dma_goes_by_the_second_socket(client: TwinClient, card: Board) -> None:
    def both() -> bytes:
        card.dma.write(AT + 4, b"more")
        return card.dma.read(AT, 4)

    card.action = both
    client.main.write(0, ACT, 4, 1, posted=True)
    write = client.twin.receive()
    assert (write.command, write.payload[16:]) == (DMA_WRITE, b"more")
    client.twin.answer(write, write.payload[:16])
    read = client.twin.receive()
    assert (read.command, read.payload) == (DMA_READ, struct.pack("<QQ", AT, 4))
    client.twin.answer(read, read.payload + b"data")
    # The next message on the first socket is the reply to this.
    assert client.main.read(0, ACT) == 1
    assert card.result == b"data"


def test_a_read_may_come_while_dma_waits(client: TwinClient, card: Board) -> None:
    card.action = lambda: card.dma.read(AT, 4)
    client.main.write(0, ACT, 4, 1, posted=True)
    asked = client.twin.receive()
    read = client.main.send(REGION_READ, access(SCRATCH, 0, 4))
    assert not select.select([client.main.socket], [], [], 0)[0]
    client.twin.answer(asked, asked.payload + b"data")
    assert client.main.reply_to(read).payload[16:] == bytes(4)
    assert card.result == b"data"


def test_other_threads_ask_there_as_well(client: TwinClient, card: Board) -> None:
    places = [AT + at for at in range(0, 64, 8)]
    joins = [in_thread(partial(card.dma.read, at, 8)) for at in places]
    for _ in joins:
        asked = client.twin.receive()
        client.twin.answer(asked, asked.payload + asked.payload[:8])
    assert [join() for join in joins] == [struct.pack("<Q", at) for at in places]
    assert client.main.read(0, SCRATCH) == 0


def test_interrupts_by_messages_go_there_as_well(server: VfioUserServer) -> None:
    with TwinClient(server, softcard_interrupts=True) as client:
        client.main.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, INTX, 0, 1, b"\1"))
        client.main.write(0, INTERRUPT_NOW, 4, 0)
        got = client.twin.receive()
        assert (got.command, got.flags) == (INTERRUPT, NO_REPLY)
        assert struct.unpack("<III", got.payload) == (INTX, 0, 1)


@pytest.mark.parametrize(
    "offer",
    [
        {},
        {"twin_socket": {}},
        {"twin_socket": {"supported": False}},
        {"twin_socket": {"supported": 1}},
        {"twin_socket": True},
    ],
)
def test_a_client_that_does_not_offer_it_gets_none(
    server: VfioUserServer, card: Board, offer: dict[str, object]
) -> None:
    with FakeClient(server.paths[0], capabilities=None) as client:
        got = greet(client, PADDING | offer)
        assert not got.fds
        assert "twin_socket" not in agreed(got)
        client.enable()
        client.ask(DMA_MAP, dma_map(AT, mmap.PAGESIZE))
        card.action = lambda: card.dma.read(AT, 4)
        client.write(0, ACT, 4, 1, posted=True)
        asked = client.receive()
        assert asked.command == DMA_READ
        client.answer(asked, asked.payload + b"data")
        assert client.read(0, ACT) == 1


def test_qemu_gets_none(server: VfioUserServer) -> None:
    with FakeClient(server.paths[0], capabilities=None) as client:
        got = client.reply_to(client.send(VERSION, version(QEMU_CAPABILITIES)))
        assert not got.fds


def test_a_reply_is_never_longer_than_its_request(server: VfioUserServer, plugs: Plugs) -> None:
    for room in range(0, 60, 3):
        with FakeClient(server.paths[0], capabilities=None) as client:
            request = version({"capabilities": TWIN | {"x": "x" * room}})
            got = client.reply_to(client.send(VERSION, request))
            assert len(got.payload) <= len(request)
            assert len(got.fds) == ("twin_socket" in agreed(got))
            for fd in got.fds:
                socket.socket(fileno=fd).close()
        plugs.wait(connected=False)


def test_over_a_network_there_is_none(card: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = VfioUserServer(card, parse_address(f"tcp://127.0.0.1:{port}"))
    try:
        with FakeClient(socket.create_connection(("127.0.0.1", port)), None) as client:
            assert "twin_socket" not in agreed(greet(client, PADDING | TWIN))
    finally:
        server.stop()


def refused_read(card: Board) -> None:
    with pytest.raises(DmaError):
        card.dma.read(AT, 4)


@pytest.mark.parametrize("loop", [True, False])
def test_without_the_second_socket_the_connection_ends(
    client: TwinClient, card: Board, plugs: Plugs, loop: bool
) -> None:
    if not loop:
        join = in_thread(lambda: refused_read(card))
        client.twin.receive()
        client.twin.close()
        join()
    client.twin.close()
    assert client.main.hung_up()
    plugs.wait(connected=False)


@pytest.mark.parametrize("asked", [False, True])
def test_a_command_on_the_second_socket_ends_the_connection(
    client: TwinClient, card: Board, asked: bool
) -> None:
    if asked:
        join = in_thread(lambda: refused_read(card))
        client.twin.receive()
    client.twin.send(REGION_READ, access(SCRATCH, 0, 4))
    assert client.main.hung_up()
    if asked:
        join()


def test_a_late_reply_is_taken_where_nobody_waits_for_it(
    client: TwinClient, card: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_ABANDONED", 1)
    with monkeypatch.context() as impatient:
        impatient.setattr(messages, "REPLY_TIMEOUT", 0.05)
        with pytest.raises(DmaError, match="no reply"):
            card.dma.read(AT, 4)
    late = client.twin.receive()
    client.twin.answer(late, late.payload + b"late")
    deadline = time.monotonic() + TIMEOUT

    def read_when_allowed() -> bytes:
        while True:
            try:
                return card.dma.read(AT, 4)
            except DmaError as error:
                if "stopped answering" not in str(error) or time.monotonic() > deadline:
                    raise

    read = in_thread(read_when_allowed)
    asked = client.twin.receive()
    client.twin.answer(asked, asked.payload + b"good")
    assert read() == b"good"


def test_a_pulled_card_leaves_its_client_both_sockets(
    client: TwinClient, server: VfioUserServer
) -> None:
    server.pull()
    assert client.main.read(0, SCRATCH) == 0xFFFFFFFF
    client.twin.close()
    assert client.main.read(0, SCRATCH) == 0xFFFFFFFF


def test_nothing_is_left_open(server: VfioUserServer, plugs: Plugs) -> None:
    before = 0
    for _ in range(5):
        with TwinClient(server):
            pass
        plugs.wait(connected=False)
        before = before or descriptors()
        assert descriptors() <= before
