"""The vfio-user server: clients that come and go, cards that hang, sockets."""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.fake_vfio_client import (
    ACT,
    BUS_MASTER,
    COMMAND_REGISTER,
    CONFIG,
    MEMORY_SPACE,
    NOTED,
    REGION_READ,
    REGION_WRITE,
    SCRATCH,
    SLOW,
    TIMEOUT,
    Board,
    ClientMemory,
    FakeClient,
    Plugs,
    access,
    descriptors,
    served,
)

from softcard import Bar, Card, Function, PlugError, Register, ResetKind, UsageError
from softcard.bus.vfio_user import VfioUserServer

AT = 0x10000
ALL_ONES = b"\xff" * 4
COMPLETION_TIMEOUT = 0.2


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


# Clients.


def test_a_card_is_plugged_in_while_it_has_a_client(
    server: VfioUserServer, card: Board, plugs: Plugs
) -> None:
    assert not card.resets
    with FakeClient(server.paths[0]) as client:
        client.enable()
        client.write(0, SCRATCH, 4, 1)
        assert plugs.connected
        assert card.resets == [ResetKind.POWER_ON]
    plugs.wait(connected=False)
    assert card.unplugs == 1


def test_the_next_client_finds_a_card_that_was_just_powered_on(
    server: VfioUserServer, card: Board
) -> None:
    for number in range(1, 4):
        with FakeClient(server.paths[0]) as client:
            assert client.read(CONFIG, COMMAND_REGISTER, 2) == 0
            client.enable()
            assert client.read(0, SCRATCH) == 0
            client.write(0, SCRATCH, 4, number)
    assert card.resets == [ResetKind.POWER_ON] * 3


def test_a_second_client_waits_for_the_first_to_go(server: VfioUserServer, card: Board) -> None:
    first = FakeClient(server.paths[0])
    with FakeClient(server.paths[0], capabilities=None) as second:
        ident = second.send(1, struct.pack("<HH", 0, 0))
        assert first.read(CONFIG, 0, 2) == Board.vendor_id
        assert not select.select([second.socket], [], [], 0)[0]
        first.close()
        second.reply_to(ident)
        assert second.read(CONFIG, 0, 2) == Board.vendor_id
    assert card.resets[:2] == [ResetKind.POWER_ON] * 2


def test_a_client_that_says_nothing_may_go_again(server: VfioUserServer) -> None:
    for _ in range(5):
        FakeClient(server.paths[0], capabilities=None).close()
    with FakeClient(server.paths[0]) as client:
        assert client.read(CONFIG, 0, 2) == Board.vendor_id


def test_hanging_up_ends_every_connection(server: VfioUserServer, plugs: Plugs) -> None:
    client = FakeClient(server.paths[0])
    server.hang_up()
    assert client.hung_up()
    plugs.wait(connected=False)
    with FakeClient(server.paths[0]) as client:
        assert client.read(CONFIG, 0, 2) == Board.vendor_id


def test_a_card_may_hang_up_itself(server: VfioUserServer, card: Board) -> None:
    with FakeClient(server.paths[0]) as client:
        client.enable()
        upstream = server._ports[0]
        card.action = upstream.link_down
        client.write(0, ACT, 4, 1, posted=True)
        assert client.hung_up()


def test_nothing_is_left_of_a_client(server: VfioUserServer, plugs: Plugs) -> None:
    before = 0
    for _ in range(10):
        with FakeClient(server.paths[0]) as client, ClientMemory() as memory:
            client.enable()
            client.map(memory, AT)
            fds = [os.eventfd(0) for _ in range(8)]
            client.wire(2, fds)
            for fd in fds:
                os.close(fd)
            # Half a message.
            client.socket.sendall(b"\0" * 20)
        plugs.wait(connected=False)
        now = descriptors()
        assert not before or now <= before
        before = now


def test_a_client_that_takes_nothing_is_given_up(
    server: VfioUserServer, monkeypatch: pytest.MonkeyPatch, plugs: Plugs
) -> None:
    monkeypatch.setattr("softcard.wire.stream.SEND_TIMEOUT", 0.1)
    with FakeClient(server.paths[0]) as client:
        client.enable()
        read = struct.pack("<HHIII", 0, REGION_READ, 32, 0, 0) + access(0, 2, 1 << 20)
        client.socket.sendall(read * 4)
        plugs.wait(connected=False)
    with FakeClient(server.paths[0]) as client:
        assert client.read(CONFIG, 0, 2) == Board.vendor_id


def test_more_clients_than_files_are_sent_away(
    server: VfioUserServer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.settimeout(TIMEOUT)
    taken: list[int] = []
    # Files of garbage would be closed at any moment, and a client be taken.
    gc.collect()
    resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        waiting.connect(str(server.paths[0]))
        assert waiting.recv(1) == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        waiting.close()
        for fd in taken:
            os.close(fd)
    assert "too many files are open" in caplog.text
    with FakeClient(server.paths[0]) as client:
        assert client.read(CONFIG, 0, 2) == Board.vendor_id


# Several functions.


class Second(Function):
    """A function with a register."""

    vendor_id, device_id = 0x1DED, 0x0A02

    class bar0(Bar, size=0x1000):
        value = Register(0)


class Pair(Card):
    """Two functions."""

    vendor_id, device_id = 0x1DED, 0x0A03
    more_functions = (Second,)

    class bar0(Bar, size=0x1000):
        value = Register(0)


def test_each_function_has_a_socket(tmp_path: Path) -> None:
    with served(Pair(), tmp_path) as server:
        assert server.paths == [tmp_path / "card", tmp_path / "card.1"]
        clients = [FakeClient(path) for path in server.paths]
        for number, client in enumerate(clients):
            client.enable()
            client.write(0, 0, 4, number + 1)
        assert [client.read(0, 0) for client in clients] == [1, 2]
        assert [client.read(CONFIG, 2, 2) for client in clients] == [0x0A03, 0x0A02]
        assert clients[0].read(CONFIG, 0x0E, 1) == 0x80
        # One goes; the other stays, and the first one's next client finds it reset.
        clients[0].close()
        with FakeClient(server.paths[0]) as again:
            again.enable()
            assert again.read(0, 0) == 0
            assert clients[1].read(0, 0) == 2
        clients[1].close()
    assert not any(path.exists() for path in server.paths)


# Cards that do not return.


def test_a_read_that_is_not_answered_gives_all_ones(
    card: Board, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        served(card, tmp_path, completion_timeout=COMPLETION_TIMEOUT) as server,
        FakeClient(server.paths[0]) as client,
    ):
        client.enable()
        slow = client.send(REGION_READ, access(SLOW, 0, 4))
        for value in (1, 2):
            client.write(0, NOTED, 4, value, posted=True)
        behind = client.send(REGION_READ, access(NOTED, 0, 4))
        block = client.send(REGION_READ, access(0, 2, 4))
        for ident in (slow, behind, block):
            assert client.reply_to(ident).payload[16:] == ALL_ONES
        assert card.noted == []
        card.gate.set()
        # The answer of the card comes too late and goes nowhere; what was posted is not lost.
        assert client.read(0, NOTED) == 2
        assert card.noted == [1, 2]
    assert "completion timeout" in caplog.text


def test_reads_behind_a_write_that_hangs_give_all_ones(card: Board, tmp_path: Path) -> None:
    with (
        served(card, tmp_path, completion_timeout=COMPLETION_TIMEOUT) as server,
        FakeClient(server.paths[0]) as client,
    ):
        client.enable()
        slow = client.send(REGION_WRITE, access(SLOW, 0, 4) + bytes(4))
        client.write(0, NOTED, 4, 7, posted=True)
        for _ in range(3):
            assert client.read_block(0, NOTED, 4) == ALL_ONES
        card.gate.set()
        assert client.reply_to(slow).payload == access(SLOW, 0, 4)
        assert client.read(0, NOTED) == 7


def test_without_a_limit_a_read_is_waited_for(card: Board, tmp_path: Path) -> None:
    with (
        served(card, tmp_path, completion_timeout=0) as server,
        FakeClient(server.paths[0]) as client,
    ):
        client.enable()
        ident = client.send(REGION_READ, access(SLOW, 0, 4))
        assert card.entered.wait(TIMEOUT)
        assert not select.select([client.socket], [], [], 2 * COMPLETION_TIMEOUT)[0]
        card.gate.set()
        assert client.reply_to(ident).payload[16:] == struct.pack("<I", 0x510)


def test_a_server_stops_though_its_card_does_not_return(
    card: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("softcard.bus.vfio_user.server.STOP_TIMEOUT", 0.1)
    with served(card, tmp_path) as server:
        client = FakeClient(server.paths[0])
        client.enable()
        client.send(REGION_READ, access(SLOW, 0, 4))
        assert card.entered.wait(TIMEOUT)
        server.stop()
        assert client.hung_up()
        assert "its thread is left behind" in caplog.text
        card.gate.set()
        server._thread.join(TIMEOUT)
    assert card.unplugs == 1


def test_stopping_ends_threads_descriptors_and_sockets(card: Board, tmp_path: Path) -> None:
    threads, before = threading.active_count(), descriptors()
    with served(card, tmp_path) as server, FakeClient(server.paths[0]) as client:
        client.enable()
        server.stop()
        assert client.hung_up()
        server.stop()
    assert threading.active_count() == threads
    assert descriptors() <= before
    assert not server.paths[0].exists()


def test_a_card_that_cannot_be_reset_sends_its_clients_away(
    card: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(kind: ResetKind) -> None:
        raise OSError("no")

    with served(card, tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(card.endpoint, "reset", fail)
            for _ in range(2):
                with FakeClient(server.paths[0], capabilities=None) as client:
                    assert client.hung_up()
        with FakeClient(server.paths[0]) as client:
            assert client.read(CONFIG, 0, 2) == Board.vendor_id


# Sockets.


def test_a_socket_that_nobody_serves_is_replaced(card: Board, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "card"))
        dead.listen()
    with served(card, tmp_path) as server, FakeClient(server.paths[0]) as client:
        assert client.read(CONFIG, 0, 2) == Board.vendor_id


def test_a_socket_of_a_killed_server_is_replaced(card: Board, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, softcard.bus.vfio_user as bus, softcard.cards.edu as edu\n"
        "server = bus.VfioUserServer(edu.Edu(), pathlib.Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    path = str(tmp_path / "card")
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with FakeClient(Path(path)) as client:
            client.enable()
            with pytest.raises(UsageError, match="in use by another process"):
                VfioUserServer(card, Path(path))
            process.send_signal(signal.SIGKILL)
            assert client.hung_up()
    with served(card, tmp_path) as server, FakeClient(server.paths[0]) as client:
        assert client.read(CONFIG, 0, 2) == Board.vendor_id


def test_a_socket_that_is_served_is_left_alone(
    server: VfioUserServer, tmp_path: Path, plugs: Plugs
) -> None:
    other = Board()
    with FakeClient(server.paths[0]) as client, FakeClient(server.paths[0], None):
        for _ in range(3):
            with pytest.raises(UsageError, match="in use by another process: choose another path"):
                VfioUserServer(other, tmp_path / "card")
        assert client.read(CONFIG, 0, 2) == Board.vendor_id
    with served(other, tmp_path / "..") as second:
        assert second.card is other


def test_a_file_is_not_replaced(card: Board, tmp_path: Path) -> None:
    (tmp_path / "card").write_text("precious")
    with pytest.raises(UsageError, match="exists and is no socket"):
        VfioUserServer(card, tmp_path / "card")
    assert (tmp_path / "card").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 120, "is too long: .* choose a shorter one"),
        ("missing/card", "cannot make socket .*: No such file or directory"),
    ],
)
def test_a_socket_that_cannot_be_made_is_one_sentence(
    card: Board, tmp_path: Path, name: str, message: str
) -> None:
    before = descriptors()
    with pytest.raises(UsageError, match=message):
        VfioUserServer(card, tmp_path / name)
    assert descriptors() == before
    # The card can be plugged in elsewhere.
    with served(card, tmp_path):
        pass


def test_a_card_is_in_one_slot(server: VfioUserServer, card: Board, tmp_path: Path) -> None:
    with pytest.raises(PlugError, match="plugged in already"):
        VfioUserServer(card, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_log_of_a_client_that_goes_is_no_error(
    server: VfioUserServer, plugs: Plugs, caplog: pytest.LogCaptureFixture
) -> None:
    with FakeClient(server.paths[0]) as client:
        client.write(CONFIG, COMMAND_REGISTER, 2, MEMORY_SPACE | BUS_MASTER)
    plugs.wait(connected=False)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
