"""Whatever a guest sends, the card stays, nothing leaks, and the next good guest is served."""

from __future__ import annotations

import gc
import logging
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.fake_guest import (
    BUFFERS,
    CFG_READ,
    COMMAND,
    DESCRIPTOR,
    ENTRIES,
    GET_FEATURES,
    HEADER,
    MEMORY_ADDRESS,
    MEMORY_SIZE,
    MMIO_READ,
    NEXT,
    SET_MEM_TABLE,
    SET_SLAVE_REQ_FD,
    SET_VRING_ADDR,
    SET_VRING_ENABLE,
    SET_VRING_NUM,
    TIMEOUT,
    VRING_KICK,
    WRITE,
    FakeGuest,
    Queue,
)

from softcard import Bar, Card, Memory, MsiX, Register
from softcard.bus.uml import CardServer

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
IDS = 0x0B00_1DED


class Target(Card):
    vendor_id, device_id = 0x1DED, 0x0B00
    msix = MsiX(vectors=4, table=(0, 0x800), pba=(0, 0xC00))

    class bar0(Bar, size=4096):
        register = Register(0x00, width=64)
        interrupt_now = Register(0x08)
        memory = Memory(0x400, 0x400)

    def __init__(self) -> None:
        super().__init__()
        self.unplugged_once = threading.Event()

    @bar0.interrupt_now.on_write
    def ring(self, value: int) -> None:
        self.interrupt(value & 3)

    def on_unplug(self) -> None:
        self.unplugged_once.set()


@pytest.fixture
def connected() -> list[bool]:
    """Whether guests have connected and gone, in order."""
    return []


@pytest.fixture
def server(tmp_path: Path, connected: list[bool]) -> Iterator[CardServer]:
    server = CardServer(Target(), tmp_path / "card", changed=connected.append)
    yield server
    server.stop()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1e-4)


def assert_served(server: CardServer) -> None:
    with FakeGuest(server.path) as guest:
        guest.boot()
        assert guest.config_read(0, 4) == IDS


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.fixture
def assert_no_leak(server: CardServer, connected: list[bool]) -> Iterator[None]:
    """No descriptor more is open after the test than before, without help of the collector."""
    assert_served(server)
    wait_for(lambda: connected == [True, False])
    before = descriptors()
    gc.disable()
    # pytest keeps what is logged, with exceptions and thereby all that their frames refer to.
    logging.disable()
    yield
    assert_served(server)
    wait_for(lambda: descriptors() <= before)
    logging.disable(logging.NOTSET)
    gc.enable()


# The protocol.


def test_a_hundred_guests_leave_no_descriptor(server: CardServer, assert_no_leak: None) -> None:
    for _ in range(100):
        assert_served(server)


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (99, b"", 0),
        (GET_FEATURES, bytes(5000), 0),
        (SET_MEM_TABLE, b"", 0),
        (SET_MEM_TABLE, struct.pack("<II", 1, 0), 1),
        (SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 0, 0, 0), 1),
        (SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 1 << 40, 0, 0), 1),
        (SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 4096, 0, 5), 1),
        (SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 4096, 0, 1 << 63), 1),
        (SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 2**64 - 1, 4096, 0, 0), 0),
        (SET_MEM_TABLE, struct.pack("<II", 0xFFFF_FFFF, 0), 1),
        (SET_SLAVE_REQ_FD, b"", 0),
        (SET_SLAVE_REQ_FD, b"", 3),
        (SET_VRING_NUM, b"\0", 0),
        (SET_VRING_NUM, struct.pack("<II", 2, 64), 0),
        (SET_VRING_ADDR, struct.pack("<IIQQQQ", 7, 0, 0, 0, 0, 0), 0),
        (SET_VRING_ENABLE, struct.pack("<II", 0, 1), 0),
    ],
)
def test_a_request_that_makes_no_sense_ends_the_connection(
    server: CardServer, assert_no_leak: None, request_: int, payload: bytes, fds: int
) -> None:
    with FakeGuest(server.path) as guest:
        guest.send(request_, payload, (guest.memory_fd,) * fds)
        guest.wait_hang_up()


@pytest.mark.parametrize("entries", [0, 3, 65536, 2**32 - 1])
def test_an_impossible_queue_ends_the_connection(
    server: CardServer, assert_no_leak: None, entries: int
) -> None:
    with FakeGuest(server.path) as guest:
        guest.negotiate()
        guest.set_memory((MEMORY_ADDRESS, MEMORY_SIZE, 0, guest.memory_fd))
        guest.set_queue(Queue(guest, 0, entries))
        guest.wait_hang_up()


@pytest.mark.parametrize("part", ["desc", "avail", "used"])
@pytest.mark.parametrize("address", [0, MEMORY_ADDRESS + MEMORY_SIZE - 8, 2**64 - 8])
def test_a_queue_outside_memory_ends_the_connection(
    server: CardServer, assert_no_leak: None, part: str, address: int
) -> None:
    with FakeGuest(server.path) as guest:
        guest.negotiate()
        guest.set_memory((MEMORY_ADDRESS, MEMORY_SIZE, 0, guest.memory_fd))
        setattr(guest.commands, part, address)
        guest.set_queue(guest.commands)
        guest.wait_hang_up()


def test_memory_that_is_no_memory_ends_the_connection(
    server: CardServer, assert_no_leak: None
) -> None:
    for fd in (
        os.open("/dev/null", os.O_RDWR),
        os.open("/proc/self/stat", os.O_RDONLY),
        socket.socket().detach(),
    ):
        with FakeGuest(server.path) as guest:
            guest.negotiate()
            guest.set_memory((MEMORY_ADDRESS, 4096, 0, fd))
            guest.wait_hang_up()
        os.close(fd)


def test_more_descriptors_than_a_request_may_have_are_closed(
    server: CardServer, assert_no_leak: None
) -> None:
    with FakeGuest(server.path) as guest, suppress(OSError):
        for _ in range(20):
            guest.send(GET_FEATURES, b"", (guest.memory_fd,) * 50)


def test_a_guest_that_takes_no_replies_does_not_stop_the_card(
    server: CardServer, assert_no_leak: None
) -> None:
    with FakeGuest(server.path) as guest:
        guest.socket.settimeout(0.5)
        with suppress(OSError):
            while True:
                guest.socket.sendall(HEADER.pack(GET_FEATURES, 1, 0) * 1000)


REQUESTS = st.tuples(
    st.sampled_from([*range(1, 26), VRING_KICK, 0, 99, 2**32 - 1]),
    st.sampled_from([0, 1, 9, 2**32 - 1]),
    st.one_of(
        st.binary(max_size=64),
        st.builds(struct.Struct("<II").pack, st.integers(0, 3), st.integers(0, 2**32 - 1)),
        st.builds(
            lambda queue, *at: struct.pack("<IIQQQQ", queue, 0, *at),
            st.integers(0, 3),
            *[st.sampled_from([0, MEMORY_ADDRESS, MEMORY_ADDRESS + 0x1001, 2**64 - 1])] * 4,
        ),
    ),
    st.integers(0, 9),
    st.booleans(),
)


@SETTINGS
@given(requests=st.lists(REQUESTS, max_size=20))
def test_any_requests_in_any_order(
    server: CardServer, requests: list[tuple[int, int, bytes, int, bool]]
) -> None:
    with FakeGuest(server.path) as guest:
        guest.socket.setblocking(False)
        with suppress(OSError):
            for request, flags, payload, fds, lie in requests:
                size = len(payload) + (3 if lie else 0)
                data = HEADER.pack(request, flags, size) + payload
                ancillary = [
                    (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", guest.memory_fd) * fds)
                ]
                guest.socket.sendmsg([data], ancillary if fds else [])
    assert_served(server)


# The queues.


def test_a_chain_that_loops_is_given_back(server: CardServer, assert_no_leak: None) -> None:
    with FakeGuest(server.path) as guest:
        guest.boot()
        guest.write(BUFFERS, COMMAND.pack(99, 0, 0, 4, 0))
        guest.commands.set_descriptor(0, BUFFERS, 16, NEXT, 1)
        guest.commands.set_descriptor(1, BUFFERS, 16, NEXT, 0)
        guest.commands.offer(0)
        guest.kick(guest.commands)
        assert guest.wait_used()[0] == 0
        assert guest.config_read(0, 4) == IDS


@pytest.mark.parametrize(
    ("op", "bar", "size", "offset"),
    [
        (0, 0, 4, 0),
        (9, 0, 4, 0),
        (255, 255, 2**32 - 1, 2**64 - 1),
        (CFG_READ, 0, 0, 0),
        (CFG_READ, 0, 3, 0),
        (CFG_READ, 0, 2**32 - 1, 0),
        (CFG_READ, 0, 8, 2**64 - 4),
        (MMIO_READ, 6, 4, 0),
        (MMIO_READ, 0, 0, 0),
        (MMIO_READ, 0, 4, 2**64 - 1),
        (MMIO_READ, 0, 2**32 - 1, 0),
        (MMIO_READ, 0, 64, 2**64 - 32),
    ],
)
def test_a_command_that_makes_no_sense_is_given_back(
    server: CardServer, assert_no_leak: None, op: int, bar: int, size: int, offset: int
) -> None:
    with FakeGuest(server.path) as guest:
        guest.boot()
        guest.command(COMMAND.pack(op, bar, 0, size, offset) + bytes(8), 64)
        assert guest.config_read(0, 4) == IDS


@pytest.mark.parametrize("length", [0, 1, 15, 16, 2**32 - 1])
@pytest.mark.parametrize("address", [0, MEMORY_ADDRESS, MEMORY_ADDRESS + MEMORY_SIZE - 1])
def test_a_buffer_outside_memory_is_given_back(
    server: CardServer, assert_no_leak: None, address: int, length: int
) -> None:
    with FakeGuest(server.path) as guest:
        guest.boot()
        guest.write(MEMORY_ADDRESS + MEMORY_SIZE - 16, COMMAND.pack(MMIO_READ, 0, 0, 4, 0))
        for first, second in (
            ((address, length), (BUFFERS, 8)),
            ((BUFFERS, 16), (address, length)),
        ):
            guest.write(BUFFERS, COMMAND.pack(MMIO_READ, 0, 0, 4, 0))
            guest.commands.set_descriptor(0, *first, NEXT, 1)
            guest.commands.set_descriptor(1, *second, WRITE, 0)
            guest.commands.offer(0)
            guest.kick(guest.commands)
            guest.wait_used()
        assert guest.config_read(0, 4) == IDS


def test_interrupt_buffers_outside_memory_are_given_back(
    server: CardServer, assert_no_leak: None
) -> None:
    with FakeGuest(server.path) as guest:
        guest.boot()
        guest.enable()
        for index in range(ENTRIES):
            guest.interrupts.set_descriptor(index, 0xDEAD_0000_0000, 20, WRITE, index)
        server.card.config.header.interrupt_pin.value = 1
        guest.mmio_write(0, 0x08, 4, 1)
        wait_for(lambda: guest.interrupts.done)
        assert guest.config_read(0, 4) == IDS


def random_queues(guest: FakeGuest, dice: random.Random) -> None:
    """Fill both descriptor tables, rings and buffers with what is nearly sensible."""
    places = [MEMORY_ADDRESS, BUFFERS, MEMORY_ADDRESS + MEMORY_SIZE - 16, 0, 2**64 - 16]
    for queue in (guest.commands, guest.interrupts):
        for index in range(ENTRIES):
            address = dice.choice([*places, BUFFERS + 64 * index, BUFFERS + 64 * index])
            length = dice.choice([16, 20, 24, 16, 64, 0, 2**32 - 1, dice.randrange(4096)])
            guest.write(
                queue.desc + 16 * index,
                DESCRIPTOR.pack(address, length, dice.randrange(8), dice.randrange(70)),
            )
        for _ in range(dice.choice([1, 5, 64, 65])):
            queue.offer(dice.randrange(0x10000))
    for index in range(ENTRIES):
        guest.write(
            BUFFERS + 64 * index,
            COMMAND.pack(
                dice.choice([1, 2, 3, 4, 5, 3, 4, 6, 7, 8, 0, 255]),
                dice.choice([0, 0, 0, 1, 5, 6, 255]),
                dice.randrange(65536),
                dice.choice([1, 2, 4, 8, 4, 3, 0, 100, 2**32 - 1, 1 << 24]),
                dice.choice([0, 4, 8, 0x400, 0x800, 0x80C, 0xFFF, 0x1000, 2**64 - 1]),
            )
            + dice.randbytes(24),
        )


@pytest.mark.parametrize("seed", range(30))
def test_any_content_of_the_queues(server: CardServer, assert_no_leak: None, seed: int) -> None:
    dice = random.Random(seed)
    with FakeGuest(server.path) as guest:
        guest.boot()
        guest.enable()
        for _ in range(5):
            random_queues(guest, dice)
            guest.kick(guest.commands, always=True)
            guest.kick(guest.interrupts, always=True)
            wait_for(lambda: guest.commands.done == guest.commands.offered)


def test_an_index_that_runs_ahead_is_survived(server: CardServer, assert_no_leak: None) -> None:
    with FakeGuest(server.path) as guest:
        guest.boot()
        guest.write(guest.commands.avail + 2, struct.pack("<H", 0x8123))
        guest.kick(guest.commands, always=True)
        wait_for(lambda: guest.commands.done == 0x8123)
