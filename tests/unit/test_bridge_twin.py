"""A server that passes a second socket for its commands: honest ones, and others."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.bridged import ADDRESS, COUNT, SUM, Signals, bridged
from tests.unit.fake_server import FakeServer, Raw, message
from tests.unit.fake_vfio_client import ERROR, NO_REPLY, REPLY, FakeClient, descriptors, in_thread

from softcard import PlugError
from softcard.bridge.vfio_user import VfioUserCard, client
from softcard.bus.simulated import SimulatedBus, SimulatedDevice
from softcard.bus.vfio_user import VfioUserServer
from softcard.model.link import LinkFeatures
from softcard.wire import vfio_user as wire
from softcard.wire.address import parse_address
from softcard.wire.stream import Beside, MessageStream
from softcard.wire.vfio_user import Command

ALL_ONES = 0xFFFFFFFF
SHORT = 0.2


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path) as server:
        yield server


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's and the client's."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def twin(fake: FakeServer, ends: tuple[socket.socket, socket.socket]) -> FakeClient:
    """The server's end, which commands can be sent by, and replies received."""
    pass_twin(fake, [ends[1].fileno()], 0)
    return FakeClient(ends[0], capabilities=None)


def pass_twin(fake: FakeServer, fds: list[int], index: object) -> None:
    fake.capabilities["twin_socket"] = {"supported": True, "fd_index": index}
    fake.reply_fds[Command.VERSION] = fds


def plugged(fake: FakeServer, bus: SimulatedBus) -> SimulatedDevice:
    return bus.plug(VfioUserCard(fake.path))[0]


def count_of(payload: bytes) -> int:
    """How many bytes a REGION_READ asks for."""
    count: int = wire.ACCESS.unpack(payload)[2]
    return count


def dma(address: int, count: int) -> bytes:
    return wire.DMA_ACCESS.pack(address, count)


# Our own server.


def test_our_own_server_is_asked_and_asks_on_two_sockets(
    tmp_path: Path, simulated_bus: SimulatedBus
) -> None:
    with bridged(Signals(), tmp_path, simulated_bus) as (device, _):
        card = device.slot.card
        assert isinstance(card, VfioUserCard)
        assert card.remote.client is not None
        assert card.remote.client.has_twin
        device.features = LinkFeatures(bus="simulated", shared_memory=False)
        memory = simulated_bus.alloc(4096)
        memory.view[:256] = bytes(range(256))
        device.write(0, ADDRESS, memory.address, 8)
        assert device.read(0, SUM) == sum(range(256))
        # More posted writes than a socket holds, and none is done before its DMA is answered.
        for number in range(3000):
            device.write(0, COUNT, number % 200)
        assert device.read(0, COUNT) == 2999 % 200
        assert bytes(memory.view[:199]) == bytes(range(199))


def test_over_a_network_there_is_one_socket(simulated_bus: SimulatedBus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    server = VfioUserServer(Signals(), parse_address(address))
    try:
        card = VfioUserCard(address)
        assert card.remote.client is not None
        assert not card.remote.client.has_twin
        card.close()
    finally:
        server.stop()


# Others, while they are honest.


def test_dma_is_answered_where_it_was_asked(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus
) -> None:
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(4096)
    memory.view[:4] = b"data"
    asked = twin.send(Command.DMA_READ, dma(memory.address, 4))
    simulated_bus.run_for(1e-3)
    assert twin.reply_to(asked).payload[16:] == b"data"
    twin.send(Command.DMA_WRITE, dma(memory.address, 4) + b"more", flags=NO_REPLY)
    simulated_bus.run_until(lambda: bytes(memory.view[:4]) == b"more")
    twin.send(Command.DMA_READ, dma(memory.address, 2 << 20))
    simulated_bus.run_for(1e-3)
    assert twin.receive().flags & (ERROR | REPLY) == ERROR | REPLY
    assert not fake.replies
    assert device.read(0, 0) == 0


@pytest.mark.parametrize("size", [4, 0x200])
def test_a_server_may_ask_before_it_replies(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus, size: int
) -> None:
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(4096)
    memory.view[:4] = b"data"

    def read(payload: bytes, fds: list[int]) -> bytes:
        asked = twin.send(Command.DMA_READ, dma(memory.address, 4))
        return payload + twin.reply_to(asked).payload[16:] * (count_of(payload) // 4)

    fake.answers[Command.REGION_READ] = read
    assert device.read_block(0, 0, size) == b"data" * (size // 4)
    assert device.read(0, 0).to_bytes(4, "little") == b"data"


@pytest.mark.parametrize("size", [4, 0x200])
def test_a_write_that_was_posted_before_the_reply_is_done_before_it(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus, size: int
) -> None:
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(4096)
    count = 0

    def read(payload: bytes, fds: list[int]) -> bytes:
        data = count.to_bytes(4, "little")
        twin.send(Command.DMA_WRITE, dma(memory.address, 4) + data, flags=NO_REPLY)
        return payload + bytes(size)

    fake.answers[Command.REGION_READ] = read
    for _ in range(100):
        count += 1
        assert device.read_block(0, 0, size) == bytes(size)
        assert int.from_bytes(memory.view[:4], "little") == count


def test_a_server_may_wait_for_an_answer_while_it_takes_nothing(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(4096)
    memory.view[:4] = b"data"
    honest = fake.answers[Command.REGION_WRITE]
    full, found = threading.Event(), []

    def ask_first(payload: bytes, fds: list[int]) -> bytes | Raw | None:
        fake.answers[Command.REGION_WRITE] = honest
        assert full.wait(10)
        found.append(twin.reply_to(twin.send(Command.DMA_READ, dma(memory.address, 4))))
        return honest(payload, fds)

    wait_writable = MessageStream._wait_writable

    def waits(stream: MessageStream, beside: Beside) -> None:
        full.set()
        wait_writable(stream, beside)

    monkeypatch.setattr(MessageStream, "_wait_writable", waits)
    fake.answers[Command.REGION_WRITE] = ask_first
    number = 0
    while not full.is_set():
        number += 1
        device.write(0, 0, number)
    assert device.read(0, 0) == number
    assert found[0].payload[16:] == b"data"


def test_a_server_that_sends_much_on_both_is_served(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus
) -> None:
    """It sends a long reply while nobody reads our answers, which are more than a socket holds."""
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(1 << 20)
    length, count = 1 << 19, 8

    def read(payload: bytes, fds: list[int]) -> bytes:
        for _ in range(count):
            twin.send(Command.DMA_READ, dma(memory.address, length))
        return payload + bytes(count_of(payload))

    fake.answers[Command.REGION_READ] = read
    answers = in_thread(lambda: [len(twin.receive().payload) for _ in range(count)])
    assert device.read_block(0, 0, 0x1000) == bytes(0x1000)
    simulated_bus.run_for(1e-3)
    assert answers() == [16 + length] * count


def test_requests_of_both_sides_may_cross(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus
) -> None:
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(4096)
    done = threading.Event()

    def ask() -> None:
        for _ in range(300):
            ident = twin.send(Command.DMA_READ, dma(memory.address, 64))
            assert twin.receive().ident == ident
        done.set()

    asked = in_thread(ask)
    number = 0
    while not done.is_set() and device.present:
        number += 1
        device.write(0, 8, number)
        assert device.read(0, 8) == number
    asked()


# Those that are not.


@pytest.mark.parametrize("index", [1, -1, None, True, "0", 0.0])
def test_a_socket_that_is_not_there_is_refused(
    fake: FakeServer, ends: tuple[socket.socket, socket.socket], index: object
) -> None:
    before = descriptors()
    pass_twin(fake, [ends[1].fileno()], index)
    with pytest.raises(PlugError, match=r"its second socket is descriptor .* of 1"):
        VfioUserCard(fake.path)
    assert descriptors() <= before + 1


@pytest.mark.parametrize("kind", ["file", "datagrams", "network", "listening"])
def test_a_descriptor_that_is_no_stream_socket_is_refused(fake: FakeServer, kind: str) -> None:
    families = {
        "datagrams": (socket.AF_UNIX, socket.SOCK_DGRAM),
        "network": (socket.AF_INET, socket.SOCK_STREAM),
        "listening": (socket.AF_UNIX, socket.SOCK_STREAM),
    }
    fd = os.memfd_create("none") if kind == "file" else socket.socket(*families[kind]).detach()
    try:
        pass_twin(fake, [fd], 0)
        with pytest.raises(PlugError, match="its second socket"):
            VfioUserCard(fake.path)
    finally:
        os.close(fd)


def test_other_descriptors_are_closed(
    fake: FakeServer, twin: FakeClient, ends: tuple[socket.socket, socket.socket]
) -> None:
    fd = os.memfd_create("other")
    pass_twin(fake, [fd, ends[1].fileno(), fd], 1)
    before = descriptors()
    card = VfioUserCard(fake.path)
    assert card.remote.client is not None
    assert card.remote.client.has_twin
    card.close()
    os.close(fd)
    assert descriptors() <= before


def test_without_a_second_socket_the_card_has_gone(
    fake: FakeServer, twin: FakeClient, ends: tuple[socket.socket, socket.socket],
    simulated_bus: SimulatedBus, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    device = plugged(fake, simulated_bus)
    ends[1].close()
    twin.close()
    simulated_bus.run_until(lambda: not device.present)
    assert device.read(0, 0) == ALL_ONES
    assert "is lost: the peer has closed the connection" in caplog.text
    device.slot.unplug()


@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (message(5, Command.REGION_READ, bytes(20)), "replies to nothing"),
        (bytes(16), "is said to have 0 bytes"),
        (b"\xff" * 16, "is said to have 4294967295 bytes"),
    ],
)
def test_nonsense_on_the_second_socket_pulls_the_card(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus, waiting: bool, data: bytes,
    says: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    device = plugged(fake, simulated_bus)
    if waiting:

        def read(payload: bytes, fds: list[int]) -> None:
            twin.socket.sendall(data)

        fake.answers[Command.REGION_READ] = read
        assert device.read(0, 0) == ALL_ONES
    else:
        twin.socket.sendall(data)
        simulated_bus.run_until(lambda: not device.present)
    assert not device.present
    assert says in caplog.text


def test_questions_without_end_do_not_keep_a_read_waiting(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(client, "TIMEOUT", SHORT)
    device = plugged(fake, simulated_bus)
    stop = threading.Event()

    def babble(payload: bytes, fds: list[int]) -> None:
        while not stop.is_set():
            twin.send(Command.DMA_READ, flags=NO_REPLY)

    fake.answers[Command.REGION_READ] = babble
    try:
        assert device.read(0, 0) == ALL_ONES
    finally:
        stop.set()
    assert not device.present
    assert "has not answered REGION_READ" in caplog.text


def test_a_server_that_does_not_reply_loses_the_card(
    fake: FakeServer, twin: FakeClient, simulated_bus: SimulatedBus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(client, "TIMEOUT", SHORT)
    device = plugged(fake, simulated_bus)
    fake.answers[Command.REGION_READ] = lambda payload, fds: None
    assert device.read(0, 0) == ALL_ONES
    assert not device.present
