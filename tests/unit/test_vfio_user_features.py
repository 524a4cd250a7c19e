"""Migration and DMA logging over vfio-user."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.fake_vfio_client import (
    ACT,
    FEATURE,
    INTERRUPT_NOW,
    MSI,
    PAGE,
    RESET,
    SCRATCH,
    Board,
    ClientMemory,
    FakeClient,
    RefusedError,
    descriptors,
    raised,
    served,
)

from softcard.model.mapping import Mapping

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
MIGRATION, STATE, LOG_START, LOG_STOP, LOG_REPORT = 1, 2, 6, 7, 8
DATA_READ, DATA_WRITE = 17, 18
ERROR_STATE, STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY = 0, 1, 2, 3, 4, 6
ROOM = 1 << 20


class Box(Board):
    migratable = True


class Friend(FakeClient):
    """A client that migrates."""

    def feature(self, flags: int, data: bytes = b"") -> bytes:
        reply = self.ask(FEATURE, struct.pack("<II", ROOM, flags) + data)
        return reply[8:]

    def state(self) -> int:
        state, _ = struct.unpack("<Ii", self.feature(GET | STATE))
        return int(state)

    def go(self, state: int) -> None:
        self.feature(SET | STATE, struct.pack("<Ii", state, -1))

    def load_piece(self, data: bytes) -> None:
        self.ask(DATA_WRITE, struct.pack("<II", 8 + len(data), len(data)) + data)

    def read_piece(self, size: int) -> bytes:
        reply = self.ask(DATA_READ, struct.pack("<II", 8 + size, size))
        argsz, got = struct.unpack_from("<II", reply)
        assert argsz == len(reply) == 8 + got
        return reply[8:]

    def save(self, piece: int) -> bytes:
        data = b""
        while part := self.read_piece(piece):
            data += part
            if len(part) < piece:
                break
        return data

    def start_log(self, *ranges: tuple[int, int], page_size: int = PAGE) -> bytes:
        data = struct.pack("<QII", page_size, len(ranges), 0)
        return self.feature(
            SET | LOG_START, data + b"".join(struct.pack("<QQ", *r) for r in ranges)
        )

    def report(self, address: int, length: int, page_size: int = PAGE) -> int:
        query = struct.pack("<QQQ", address, length, page_size)
        reply = self.feature(GET | LOG_REPORT, query)
        assert reply[:24] == query
        assert len(reply) % 8 == 0
        return int.from_bytes(reply[24:], "little")


def assert_refused(error: int, *, of: Friend, flags: int, data: bytes = b"") -> None:
    with pytest.raises(RefusedError) as refused:
        of.feature(flags, data)
    assert refused.value.error == error


@pytest.fixture
def card() -> Box:
    return Box()


@pytest.fixture
def client(card: Box, tmp_path: Path) -> Iterator[Friend]:
    with served(card, tmp_path) as server, Friend(server.paths[0]) as client:
        client.enable()
        yield client


def test_a_card_that_cannot_be_migrated_offers_nothing(tmp_path: Path) -> None:
    with served(Board(), tmp_path) as server, Friend(server.paths[0]) as client:
        for index in range(10):
            for action in (GET, SET, PROBE, PROBE | GET, PROBE | SET):
                assert_refused(errno.ENOTSUP, of=client, flags=action | index)


def test_what_is_offered_can_be_probed(client: Friend) -> None:
    offered = {MIGRATION: GET, STATE: GET | SET, LOG_START: SET, LOG_STOP: SET, LOG_REPORT: GET}
    for index in range(10):
        for actions in (0, GET, SET, GET | SET):
            known = offered.get(index, 0)
            if known and actions & known == actions:
                assert client.feature(PROBE | actions | index) == b""
            else:
                assert_refused(errno.ENOTSUP, of=client, flags=PROBE | actions | index)


def test_only_stop_copy_is_supported(client: Friend) -> None:
    assert client.feature(GET | MIGRATION) == struct.pack("<Q", 1)


def test_the_state_of_one_card_becomes_that_of_another(client: Friend, tmp_path: Path) -> None:
    client.write(0, SCRATCH, 8, 0x1122334455667788)
    client.write_block(2, 0x123, b"survives")
    client.go(STOP_COPY)
    saved = client.save(1000)
    assert len(saved) > 2000
    assert client.read_piece(1000) == b""
    (tmp_path / "2").mkdir()
    with served(Box(), tmp_path / "2") as server, Friend(server.paths[0]) as other:
        other.go(RESUMING)
        for at in range(0, len(saved), 700):
            other.load_piece(saved[at : at + 700])
        other.go(RUNNING)
        assert other.state() == RUNNING
        # Memory space is enabled: configuration space came with the state.
        assert other.read(0, SCRATCH, 8) == 0x1122334455667788
        assert other.read_block(2, 0x123, 8) == b"survives"


@pytest.mark.parametrize("start", [RUNNING, STOP, STOP_COPY])
@pytest.mark.parametrize("end", [RUNNING, STOP, STOP_COPY])
def test_every_state_leads_to_every_other(client: Friend, start: int, end: int) -> None:
    client.go(start)
    client.go(end)
    assert client.state() == end


@pytest.mark.parametrize("state", [ERROR_STATE, 5, PRE_COPY, 7, 99])
def test_there_are_no_other_states(client: Friend, state: int) -> None:
    assert_refused(errno.EINVAL, of=client, flags=SET | STATE, data=struct.pack("<Ii", state, -1))
    assert client.state() == RUNNING


def test_what_is_no_state_leads_to_the_error_state_which_a_reset_ends(client: Friend) -> None:
    client.write(0, SCRATCH, 4, 77)
    client.go(RESUMING)
    client.load_piece(b"nonsense")
    assert_refused(errno.EIO, of=client, flags=SET | STATE, data=struct.pack("<Ii", RUNNING, -1))
    assert client.state() == ERROR_STATE
    assert_refused(errno.EINVAL, of=client, flags=SET | STATE, data=struct.pack("<Ii", STOP, -1))
    client.ask(RESET)
    assert client.state() == RUNNING
    client.enable()
    assert client.read(0, SCRATCH) == 0


def test_data_moves_only_in_the_state_for_it(client: Friend) -> None:
    for state, request in (
        (RUNNING, lambda: client.read_piece(10)),
        (RUNNING, lambda: client.load_piece(b"x")),
        (STOP_COPY, lambda: client.load_piece(b"x")),
        (RESUMING, lambda: client.read_piece(10)),
    ):
        if client.state() != state:
            client.go(state)
        with pytest.raises(RefusedError, match="EINVAL"):
            request()


def test_a_stopped_card_does_no_dma_and_its_interrupts_wait(client: Friend, card: Box) -> None:
    with ClientMemory() as memory:
        client.map(memory, 0x1000)
        events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
        client.wire(MSI, events)
        client.go(STOP)
        assert not card.dma.allowed
        client.write(0, INTERRUPT_NOW, 4, 1)
        client.go(STOP_COPY)
        assert raised(events[1]) == 0
        client.go(RUNNING)
        assert card.dma.allowed
        client.write(0, INTERRUPT_NOW, 4, 1)
        assert raised(events[1]) >= 1


def test_a_client_that_goes_while_the_card_is_stopped_leaves_it_running(tmp_path: Path) -> None:
    card = Box()
    with served(card, tmp_path) as server:
        with Friend(server.paths[0]) as client:
            client.go(STOP_COPY)
        with Friend(server.paths[0]) as client:
            client.enable()
            assert client.state() == RUNNING
            assert card.dma.allowed


@pytest.fixture
def memory(client: Friend) -> Iterator[ClientMemory]:
    with ClientMemory(64 * PAGE) as memory:
        client.map(memory, 1 << 20)
        yield memory


def write_from_card(client: Friend, card: Box, address: int, length: int) -> None:
    card.action = lambda: card.dma.write(address, b"x" * length)
    client.write(0, ACT, 4, 0)


@pytest.mark.usefixtures("memory")
def test_writes_are_logged_by_page_once(client: Friend, card: Box) -> None:
    base = 1 << 20
    assert client.start_log() == struct.pack("<QII", PAGE, 0, 0)
    assert client.report(base, 64 * PAGE) == 0
    write_from_card(client, card, base, 1)
    write_from_card(client, card, base + 3 * PAGE - 1, 2)
    write_from_card(client, card, base + 10 * PAGE, 20 * PAGE)
    assert client.report(base, 64 * PAGE) == 0b1101 | ((1 << 20) - 1) << 10
    assert client.report(base, 64 * PAGE) == 0


@pytest.mark.usefixtures("memory")
def test_a_report_may_have_pages_of_another_size(client: Friend, card: Box) -> None:
    base = 1 << 20
    client.start_log(page_size=1 << 16)
    write_from_card(client, card, base + 5 * PAGE, 1)
    assert client.report(base, 64 * PAGE, 4 * PAGE) == 0b10
    write_from_card(client, card, base + 5 * PAGE, 1)
    assert client.report(base, 64 * PAGE, 1024) == 0b1111 << 20


@pytest.mark.usefixtures("memory")
def test_only_the_ranges_that_were_named_are_logged(client: Friend, card: Box) -> None:
    base = 1 << 20
    client.start_log((base + 2 * PAGE, PAGE), (base + 8 * PAGE, 2 * PAGE))
    write_from_card(client, card, base, 64 * PAGE)
    assert client.report(base, 64 * PAGE) == 1 << 2 | 0b11 << 8


@pytest.mark.usefixtures("memory")
def test_what_a_card_has_a_view_of_counts_as_written(client: Friend, card: Box) -> None:
    base = 1 << 20
    card.action = lambda: card.dma.map(base + 7 * PAGE, 2 * PAGE)
    client.write(0, ACT, 4, 0)
    client.start_log()
    assert client.report(base, 64 * PAGE) == 0b11 << 7
    assert client.report(base, 64 * PAGE) == 0b11 << 7
    client.unmap(base, 64 * PAGE)
    assert client.report(base, 64 * PAGE) == 0


@pytest.mark.usefixtures("memory")
def test_logging_stops(client: Friend, card: Box) -> None:
    client.start_log()
    write_from_card(client, card, 1 << 20, 1)
    client.feature(SET | LOG_STOP)
    query = struct.pack("<QQQ", 1 << 20, PAGE, PAGE)
    assert_refused(errno.EINVAL, of=client, flags=GET | LOG_REPORT, data=query)
    client.start_log()
    assert client.report(1 << 20, PAGE) == 0


@pytest.mark.parametrize(
    ("flags", "data"),
    [
        (0, b""),
        (GET | SET | STATE, b""),
        (1 << 19 | GET | STATE, b""),
        (SET | STATE, b"abc"),
        (SET | LOG_START, b""),
        (SET | LOG_START, struct.pack("<QII", 4096, 1, 0)),
        (SET | LOG_START, struct.pack("<QIIQQ", 4096, 1, 0, 4096, 0)),
        (SET | LOG_START, struct.pack("<QIIQQ", 4096, 1, 0, (1 << 64) - 1, 2)),
        (SET | LOG_START, struct.pack("<QII", 4096, 0xFFFFFFFF, 0)),
        (GET | LOG_REPORT, b""),
        (GET | LOG_REPORT, struct.pack("<QQQ", 0, 4096, 4096)),
    ],
)
def test_malformed_requests_are_refused(client: Friend, flags: int, data: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        client.feature(flags, data)
    assert refused.value.error in (errno.EINVAL, errno.ENOTSUP)
    assert client.state() == RUNNING


@pytest.mark.parametrize(
    "query",
    [(0, 0, PAGE), (0, PAGE, 0), (0, PAGE, 3), (0, 1 << 63, 1), (0, 1 << 40, PAGE)],
)
def test_impossible_reports_are_refused(client: Friend, query: tuple[int, int, int]) -> None:
    client.start_log()
    with pytest.raises(RefusedError):
        client.feature(GET | LOG_REPORT, struct.pack("<QQQ", *query))


def test_a_reply_that_has_no_room_is_refused(client: Friend) -> None:
    with pytest.raises(RefusedError, match="ENOSPC"):
        client.ask(FEATURE, struct.pack("<II", 8, GET | MIGRATION))


def test_an_address_beyond_all_memory_is_no_harm(client: Friend) -> None:
    client.start_log()
    assert client.report((1 << 64) - PAGE, PAGE) == 0


def test_a_mapping_that_was_taken_away_is_private_memory() -> None:
    before = descriptors()
    with ClientMemory(2 * PAGE) as memory:
        mapping = Mapping(memory.fd, 0, 2 * PAGE)
        view = mapping.view[10:20]
        view[:] = b"0123456789"
        assert memory.view[10:20] == view
        mapping.revoke()
        assert bytes(view) == bytes(10)
        view[:] = b"abcdefghij"
        assert bytes(memory.view[10:20]) == b"0123456789"
        view.release()
        del mapping, view
    assert descriptors() <= before
