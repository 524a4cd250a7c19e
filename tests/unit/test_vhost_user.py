"""The User Mode Linux bus, from a guest that speaks vhost-user and virtio-pcidev by hand."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.fake_guest import (
    BUFFERS,
    COMMAND,
    GET_CONFIG,
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    INT,
    INTERRUPT_BUFFERS,
    MEMORY_ADDRESS,
    MEMORY_SIZE,
    MMIO_MEMSET,
    MMIO_READ,
    MMIO_WRITE,
    MSI,
    NEED_REPLY,
    NEXT,
    PROTOCOL_FEATURES,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_SLAVE_REQ_FD,
    TIMEOUT,
    VERSION,
    VERSION_1,
    FakeGuest,
)

from softcard import Bar, Card, Memory, Msi, MsiX, PlugError, Register, ResetKind, UsageError
from softcard.bus.uml import CardServer

SLAVE_REQ, CONFIG, INBAND_NOTIFICATIONS = 1 << 5, 1 << 9, 1 << 14
VECTORS = 4
MESSAGE_ADDRESS = 0xA0000


class Board(Card):
    """A bit of everything."""

    vendor_id, device_id = 0x1DED, 0x0A00
    interrupt_pin = 1
    msi = Msi()
    msix = MsiX(vectors=VECTORS, table=(2, 0), pba=(2, 0x800))

    class bar0(Bar, size=0x4000):
        scratch = Register(0x00, width=64)
        interrupt_now = Register(0x08)
        release = Register(0x0C)
        slow = Register(0x10)
        broken = Register(0x14)
        memory = Memory(0x1000, 0x2000)

    class bar2(Bar, size=4096):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.resets: list[ResetKind] = []
        self.unplugs = 0
        self.memory_removed: list[int] = []
        self.written: list[int] = []

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)

    def on_unplug(self) -> None:
        self.unplugs += 1

    def on_memory_removed(self, address: int, size: int) -> None:
        self.memory_removed.append(address)

    @bar0.scratch.on_write
    def scratch_written(self, value: int) -> None:
        self.written.append(value)

    @bar0.interrupt_now.on_write
    def interrupt_often(self, count: int) -> None:
        for index in range(count):
            self.interrupt(index % self.interrupts.vectors)

    @bar0.release.on_write
    def release_line(self, vector: int) -> None:
        self.deassert(vector)

    @bar0.slow.on_read
    def read_slowly(self) -> int:
        self.entered.set()
        self.gate.wait(4 * TIMEOUT)
        return 0x510

    @bar0.slow.on_write
    def write_slowly(self, _value: int) -> None:
        self.entered.set()
        self.gate.wait(4 * TIMEOUT)

    @bar0.broken.on_read
    def read_broken(self) -> int:
        raise RuntimeError("broken on purpose")


@pytest.fixture
def card() -> Board:
    return Board()


@pytest.fixture
def server(card: Board, tmp_path: Path) -> Iterator[CardServer]:
    server = CardServer(card, tmp_path / "card", completion_timeout=0.2)
    yield server
    card.gate.set()
    server.stop()


@pytest.fixture
def raw(server: CardServer) -> Iterator[FakeGuest]:
    """Connected, and nothing more."""
    with FakeGuest(server.path) as guest:
        yield guest


@pytest.fixture
def guest(raw: FakeGuest) -> FakeGuest:
    """Booted, with memory access and DMA enabled."""
    raw.boot()
    raw.enable()
    return raw


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until the card's thread has come so far."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


def enable_msix(guest: FakeGuest) -> None:
    for vector in range(VECTORS):
        for index, word in enumerate((MESSAGE_ADDRESS, 0, 0x100 + vector, 0)):
            guest.mmio_write(2, 16 * vector + 4 * index, 4, word)
    at = guest.config_read(0x34, 1)
    while guest.config_read(at, 1) != 0x11:
        at = guest.config_read(at + 1, 1)
    guest.config_write(at + 2, 2, 0x8000 | VECTORS - 1)


# The handshake.


def test_it_offers_what_the_kernel_needs_and_nothing_that_slows_it(raw: FakeGuest) -> None:
    assert raw.ask(GET_FEATURES) == VERSION_1 | PROTOCOL_FEATURES
    assert raw.ask(GET_PROTOCOL_FEATURES) == SLAVE_REQ | CONFIG | INBAND_NOTIFICATIONS


def test_a_request_that_needs_a_reply_gets_one(raw: FakeGuest) -> None:
    raw.send(SET_OWNER, flags=VERSION | NEED_REPLY)
    assert raw.receive() == (SET_OWNER, bytes(8))


def test_the_configuration_is_given_back(raw: FakeGuest) -> None:
    request = struct.pack("<III", 0, 4, 0) + bytes(4)
    raw.send(GET_CONFIG, request)
    assert raw.receive() == (GET_CONFIG, request)


def test_requests_may_come_together_or_in_pieces(raw: FakeGuest) -> None:
    one = struct.pack("<III", GET_FEATURES, VERSION, 0)
    raw.socket.sendall(one * 3)
    for _ in range(3):
        raw.receive()
    for byte in one:
        raw.socket.sendall(bytes([byte]))
    assert raw.receive()[0] == GET_FEATURES


def test_connecting_is_a_power_on_reset(card: Board, guest: FakeGuest) -> None:
    assert card.resets == [ResetKind.POWER_ON]


# Accesses.


def test_configuration_accesses_of_each_size(guest: FakeGuest) -> None:
    assert guest.config_read(0, 4) == 0x0A00_1DED
    assert guest.config_read(0, 2) == 0x1DED
    assert guest.config_read(3, 1) == 0x0A
    guest.config_write(0x3C, 1, 0xFFFF_FFFF_FFFF_FF42)
    assert guest.config_read(0x3C, 1) == 0x42
    assert guest.config_read(0x3D, 1) == 1
    assert guest.config_read(0xFFC, 4) == 0
    assert guest.config_read(0x1000, 4) == 0xFFFF_FFFF


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_accesses_of_each_size(guest: FakeGuest, size: int) -> None:
    value = 0x8877_6655_4433_2211 & (1 << 8 * size) - 1
    guest.mmio_write(0, 0, size, value)
    assert guest.mmio_read(0, 0, size) == value
    guest.mmio_write(0, 0x1FF9, size, value)
    assert guest.mmio_read(0, 0x1FF9, size) == value


def test_blocks_are_copied_to_and_from_memory(card: Board, guest: FakeGuest) -> None:
    data = bytes(range(256)) * 4
    guest.command(COMMAND.pack(MMIO_WRITE, 0, 0, len(data), 0x1001) + data)
    assert bytes(card.bar0.memory.view[1 : 1 + len(data)]) == data
    assert guest.command(COMMAND.pack(MMIO_READ, 0, 0, len(data), 0x1001), len(data)) == data


def test_blocks_over_registers_are_register_accesses(card: Board, guest: FakeGuest) -> None:
    guest.command(COMMAND.pack(MMIO_WRITE, 0, 0, 16, 0) + bytes(range(1, 9)) + bytes(8))
    assert card.written == [0x0403_0201, 0x0807_0605_0403_0201]
    answer = guest.command(COMMAND.pack(MMIO_READ, 0, 0, 12, 0), 12)
    assert answer == bytes(range(1, 9)) + bytes(4)


def test_memset_fills(card: Board, guest: FakeGuest) -> None:
    guest.command(COMMAND.pack(MMIO_MEMSET, 0, 0, 0x1FFE, 0x1001) + b"\xa5")
    assert bytes(card.bar0.memory.view) == b"\0" + b"\xa5" * 0x1FFE + b"\0"


def test_a_bar_that_is_not_there_reads_as_all_ones(guest: FakeGuest) -> None:
    assert guest.mmio_read(4, 0, 4) == 0xFFFF_FFFF
    assert guest.mmio_read(7, 0, 4) == 0xFFFF_FFFF
    guest.mmio_write(4, 0, 4, 1)


def test_a_handler_that_raises_reads_as_all_ones(card: Board, guest: FakeGuest) -> None:
    assert guest.mmio_read(0, 0x14, 4) == 0xFFFF_FFFF
    assert card.endpoint.errors[-1].doing == "read of 4 bytes at BAR 0 + 0x14 (broken)"
    guest.mmio_write(0, 0, 8, 5)
    assert guest.mmio_read(0, 0, 8) == 5


def test_a_link_that_raises_reads_as_all_ones_and_the_bus_lives(
    card: Board, server: CardServer, monkeypatch: pytest.MonkeyPatch, guest: FakeGuest
) -> None:
    def fail(*_: object) -> int:
        raise LookupError("an interposer's fault")

    for name in ("read", "write", "read_block"):
        monkeypatch.setattr(card.endpoint, name, fail)
    assert guest.mmio_read(0, 0, 4) == 0xFFFF_FFFF
    guest.mmio_write(0, 0, 4, 1)
    assert guest.command(COMMAND.pack(MMIO_READ, 0, 0, 16, 0), 16) == b"\xff" * 16
    monkeypatch.setattr(card.endpoint, "read", lambda *_: 1 << 64)
    assert guest.mmio_read(0, 0, 4) == 0xFFFF_FFFF
    monkeypatch.undo()
    assert guest.mmio_read(0, 0, 4) == 0


def test_posted_writes_arrive_all_and_in_order(card: Board, guest: FakeGuest) -> None:
    count = 1000
    for value in range(count):
        head = value % 32
        if value >= 32:
            guest.wait_used()
        message = COMMAND.pack(MMIO_WRITE, 0, 0, 8, 0) + value.to_bytes(8, "little")
        guest.post(message, head=head)
    wait_for(lambda: len(card.written) == count)
    assert card.written == list(range(count))


def test_the_guest_is_told_that_buffers_of_writes_are_free(guest: FakeGuest) -> None:
    os.set_blocking(guest.calls, False)
    for value in range(20):
        message = COMMAND.pack(MMIO_WRITE, 0, 0, 4, 0) + value.to_bytes(4, "little")
        guest.post(message, head=value)
    wait_for(lambda: guest.commands.done == guest.commands.offered)
    call = os.read(guest.calls, 1 << 16)
    assert struct.pack("<IIIII", 4, 1, 8, 0, 0) in call


def test_a_command_may_lie_in_several_buffers(card: Board, guest: FakeGuest) -> None:
    message = COMMAND.pack(MMIO_WRITE, 0, 0, 12, 0x1000) + b"0123456789ab"
    guest.write(BUFFERS, message)
    queue = guest.commands
    queue.set_descriptor(0, BUFFERS, 16, NEXT, 1)
    queue.set_descriptor(1, BUFFERS + 16, 5, NEXT, 2)
    queue.set_descriptor(2, BUFFERS + 21, 7, 0, 0)
    queue.offer(0)
    guest.kick(queue)
    guest.wait_used()
    assert bytes(card.bar0.memory.view[:12]) == b"0123456789ab"


# DMA.


def test_dma_reaches_the_guests_memory_and_nothing_else(card: Board, guest: FakeGuest) -> None:
    card.dma.write(MEMORY_ADDRESS + 0x80000, b"from the card")
    assert guest.read(MEMORY_ADDRESS + 0x80000, 13) == b"from the card"
    guest.write(MEMORY_ADDRESS + 0x80000, b"to")
    view = card.dma.map(MEMORY_ADDRESS + 0x80000, 4)
    assert bytes(view) == b"toom"
    for address, length in (
        (0, 4), (MEMORY_ADDRESS - 1, 1), (MEMORY_ADDRESS + MEMORY_SIZE - 1, 2), (2**63, 8),
    ):  # fmt: skip
        with pytest.raises(Exception, match="not memory of the guest"):
            card.dma.read(address, length)


def test_a_hang_up_takes_the_memory_away(card: Board, guest: FakeGuest) -> None:
    guest.close_socket()
    wait_for(lambda: card.unplugs)
    assert card.memory_removed == [MEMORY_ADDRESS]
    with pytest.raises(Exception, match="not plugged in"):
        card.dma.read(MEMORY_ADDRESS, 4)


def test_a_new_memory_table_replaces_the_old(card: Board, guest: FakeGuest) -> None:
    guest.set_memory((0x4000_0000, 0x1000, 0x2000, guest.memory_fd))
    guest.ask(GET_FEATURES)
    assert card.memory_removed == [MEMORY_ADDRESS]
    guest.write(MEMORY_ADDRESS + 0x2000, b"moved")
    assert card.dma.read(0x4000_0000, 5) == b"moved"


# Interrupts.


def test_messages_carry_what_the_driver_programmed(guest: FakeGuest) -> None:
    enable_msix(guest)
    guest.mmio_write(0, 0x08, 4, VECTORS)
    assert guest.wait_messages(VECTORS) == [
        (MSI, MESSAGE_ADDRESS, (0x100 + vector).to_bytes(4, "little")) for vector in range(VECTORS)
    ]


def test_more_interrupts_than_buffers_wait_and_none_is_lost(guest: FakeGuest) -> None:
    enable_msix(guest)
    count = 10 * INTERRUPT_BUFFERS
    guest.mmio_write(0, 0x08, 4, count)
    messages = guest.wait_messages(count)
    assert [int.from_bytes(data, "little") for _, _, data in messages] == [
        0x100 + index % VECTORS for index in range(count)
    ]


def test_interrupts_wait_while_the_guest_gives_no_buffer_back(guest: FakeGuest) -> None:
    enable_msix(guest)
    guest.mmio_write(0, 0x08, 4, INTERRUPT_BUFFERS + 3)
    taken = guest.take_messages(give_back=False)
    assert len(taken) == INTERRUPT_BUFFERS
    assert guest.mmio_read(0, 0x08, 4) == INTERRUPT_BUFFERS + 3
    assert guest.take_messages() == []
    for head in range(INTERRUPT_BUFFERS):
        guest.interrupts.offer(head)
    guest.kick(guest.interrupts)
    guest.wait_messages(INTERRUPT_BUFFERS + 3)


def test_interrupts_of_other_threads_are_not_lost(card: Board, guest: FakeGuest) -> None:
    enable_msix(guest)
    each = 200

    def signal(vector: int) -> None:
        for _ in range(each):
            card.interrupt(vector)

    threads = [threading.Thread(target=signal, args=(vector,)) for vector in range(VECTORS)]
    for thread in threads:
        thread.start()
    guest.wait_messages(each * VECTORS)
    for thread in threads:
        thread.join()
    guest.ask(GET_FEATURES)
    guest.take_messages()
    data = [data for _, _, data in guest.messages]
    for vector in range(VECTORS):
        assert data.count((0x100 + vector).to_bytes(4, "little")) == each


def test_intx_is_sent_again_after_each_access_until_it_is_released(guest: FakeGuest) -> None:
    guest.mmio_write(0, 0x08, 4, 1)
    assert guest.wait_messages(1)[0][:2] == (INT, 1)
    guest.mmio_read(0, 0x00, 4)
    guest.wait_messages(2)
    guest.mmio_write(0, 0x0C, 4, 0)
    guest.ask(GET_FEATURES)
    guest.take_messages()
    before = len(guest.messages)
    guest.mmio_read(0, 0x00, 4)
    guest.ask(GET_FEATURES)
    guest.take_messages()
    assert len(guest.messages) == before


def test_a_guest_that_reads_no_calls_does_not_stop_the_card(guest: FakeGuest) -> None:
    enable_msix(guest)
    for _ in range(2000):
        guest.mmio_write(0, 0x08, 4, 1)
        guest.take_messages()
    assert guest.mmio_read(0, 0x08, 4) == 1


# Completion time-out.


def test_a_read_that_is_not_answered_gives_all_ones(
    card: Board, guest: FakeGuest, caplog: pytest.LogCaptureFixture
) -> None:
    assert guest.mmio_read(0, 0x10, 4) == 0xFFFF_FFFF
    complaint = "completion timeout: Board has not answered a read for 0.2 s"
    wait_for(lambda: complaint in caplog.text)
    card.gate.set()
    guest.mmio_write(0, 0, 8, 77)
    assert guest.mmio_read(0, 0, 8) == 77
    assert guest.mmio_read(0, 0x10, 4) == 0x510


def test_every_read_behind_a_stuck_one_times_out_too(card: Board, guest: FakeGuest) -> None:
    for _ in range(3):
        assert guest.mmio_read(0, 0x10, 4) == 0xFFFF_FFFF
    assert guest.mmio_read(0, 0x00, 4) == 0xFFFF_FFFF
    assert guest.config_read(0, 4) == 0xFFFF_FFFF
    card.gate.set()
    wait_for(lambda: guest.mmio_read(0, 0x10, 4) == 0x510)
    assert guest.config_read(0, 4) == 0x0A00_1DED


def test_a_read_behind_a_stuck_write_times_out_and_the_writes_are_not_lost(
    card: Board, guest: FakeGuest
) -> None:
    for head, (offset, value) in enumerate(((0x10, 0), (0x00, 5), (0x00, 6))):
        message = COMMAND.pack(MMIO_WRITE, 0, 0, 4, offset) + value.to_bytes(4, "little")
        guest.post(message, head=head)
    guest.post(COMMAND.pack(MMIO_READ, 0, 0, 4, 0), 4, head=10)
    assert guest.wait_used()[0] == 10
    assert guest.read(BUFFERS + 10 * 0x1000 + 0x800, 4) == b"\xff" * 4
    guest.post(COMMAND.pack(MMIO_WRITE, 0, 0, 4, 0) + b"\7\0\0\0", head=3)
    assert card.written == []
    card.gate.set()
    assert [guest.wait_used()[0] for _ in range(4)] == [0, 1, 2, 3]
    assert card.written == [5, 6, 7]
    assert guest.mmio_read(0, 0, 4) == 7


# Hanging up.


@pytest.mark.parametrize("messages", range(6))
def test_a_hang_up_during_the_handshake_leaves_the_card_ready(
    card: Board, server: CardServer, messages: int
) -> None:
    with FakeGuest(server.path) as guest:
        steps: list[Callable[[], object]] = [
            lambda: guest.send(SET_OWNER),
            lambda: guest.ask(GET_FEATURES),
            lambda: guest.send(SET_SLAVE_REQ_FD, fds=(guest.calls_write,)),
            lambda: guest.set_memory((MEMORY_ADDRESS, MEMORY_SIZE, 0, guest.memory_fd)),
            lambda: guest.set_queue(guest.commands),
        ]
        for step in steps[:messages]:
            step()
    assert_served(server)


def test_a_hang_up_in_the_middle_of_a_request_leaves_the_card_ready(server: CardServer) -> None:
    with FakeGuest(server.path) as guest:
        guest.socket.sendall(struct.pack("<III", SET_MEM_TABLE, VERSION, 40) + bytes(3))
    assert_served(server)


def test_a_hang_up_during_a_slow_read_leaves_the_card_ready(
    card: Board, server: CardServer
) -> None:
    with FakeGuest(server.path) as guest:
        guest.boot()
        guest.enable()
        guest.post(COMMAND.pack(MMIO_READ, 0, 0, 4, 0x10), 4)
        card.entered.wait(TIMEOUT)
    card.gate.set()
    assert_served(server)


def test_the_card_hangs_up_when_it_is_pulled(
    card: Board, server: CardServer, guest: FakeGuest
) -> None:
    server.hang_up()
    guest.wait_hang_up()
    wait_for(lambda: card.unplugs == 1)
    assert_served(server)
    assert card.resets == [ResetKind.POWER_ON] * 2


def test_a_card_that_does_not_return_can_be_pulled(
    card: Board, server: CardServer, guest: FakeGuest
) -> None:
    guest.post(COMMAND.pack(MMIO_WRITE, 0, 0, 4, 0x10) + bytes(4))
    card.entered.wait(TIMEOUT)
    server.hang_up()
    guest.wait_hang_up()
    card.gate.set()
    assert_served(server)


def test_stopping_does_not_wait_for_ever_for_a_card_that_does_not_return(
    card: Board,
    server: CardServer,
    guest: FakeGuest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("softcard.bus.uml.server.STOP_TIMEOUT", 0.1)
    guest.post(COMMAND.pack(MMIO_WRITE, 0, 0, 4, 0x10) + bytes(4))
    card.entered.wait(TIMEOUT)
    server.stop()
    guest.wait_hang_up()
    assert "a handler of Board has not returned" in caplog.text


def test_stopping_at_once_after_a_guest_has_connected_does_not_hang(tmp_path: Path) -> None:
    for round_ in range(30):
        server = CardServer(Board(), tmp_path / "card")
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(str(server.path))
        time.sleep(round_ * 1e-4)
        stopper = threading.Thread(target=server.stop, daemon=True)
        stopper.start()
        stopper.join(TIMEOUT)
        assert not stopper.is_alive()
        stream.close()


def test_stopping_while_a_guest_is_being_connected_does_not_hang(tmp_path: Path) -> None:
    class Slow(Board):
        def on_reset(self, kind: ResetKind) -> None:
            self.entered.set()
            self.gate.wait(TIMEOUT)

    card = Slow()
    server = CardServer(card, tmp_path / "card")
    with FakeGuest(server.path):
        assert card.entered.wait(TIMEOUT)
        stopper = threading.Thread(target=server.stop, daemon=True)
        stopper.start()
        stopper.join(0.05)
        card.gate.set()
        stopper.join(TIMEOUT)
        assert not stopper.is_alive()
        assert card.unplugs == 1


def test_a_stopped_server_leaves_nothing(card: Board, tmp_path: Path) -> None:
    server = CardServer(card, tmp_path / "card")
    assert_served(server)
    server.stop()
    assert list(tmp_path.iterdir()) == []
    again = CardServer(card, tmp_path / "card")
    again.stop()


# The socket.


def test_a_path_that_is_too_long_is_refused(card: Board, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"too long: \d+ bytes, at most 107"):
        CardServer(card, tmp_path / ("x" * 108))


@pytest.mark.parametrize("name", ["a:b", "a b"])
def test_a_path_that_the_kernel_cannot_name_is_refused(
    card: Board, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="colon or a space"):
        CardServer(card, tmp_path / name)


def test_a_socket_in_use_is_refused(server: CardServer) -> None:
    with pytest.raises(UsageError, match="in use by another process"):
        CardServer(Board(), server.path)


def test_a_socket_that_a_dead_process_left_is_replaced(card: Board, tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(tmp_path / "card"))
    dead.close()
    server = CardServer(card, tmp_path / "card")
    assert_served(server)
    server.stop()


def test_a_folder_that_does_not_exist_is_named(card: Board, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot make socket"):
        CardServer(card, tmp_path / "nowhere" / "card")


def test_a_card_has_one_server(card: Board, server: CardServer, tmp_path: Path) -> None:
    with pytest.raises(PlugError, match="plugged in already"):
        CardServer(card, tmp_path / "other")


# Fairness.


def test_a_guest_that_never_pauses_does_not_starve_the_cards_background(
    card: Board, guest: FakeGuest
) -> None:
    ticked = threading.Event()

    def offer_another(_value: int) -> None:
        # As if the guest were always faster than the card.
        if not ticked.is_set():
            guest.commands.offer(0)

    card.bars[0].file.hook_write(card.bar0.scratch, offer_another)
    card.loop.call_soon_threadsafe(card.after, 0.01, ticked.set)
    guest.post(COMMAND.pack(MMIO_WRITE, 0, 0, 8, 0) + bytes(8))
    assert ticked.wait(TIMEOUT)


def assert_served(server: CardServer) -> None:
    """A good guest is served."""
    with FakeGuest(server.path) as guest:
        guest.boot()
        guest.enable()
        assert guest.config_read(0, 4) == 0x0A00_1DED
        guest.mmio_write(0, 0, 8, 0x1234)
        assert guest.mmio_read(0, 0, 8) == 0x1234
