"""Servers that lie, stall or babble: one sentence and a pulled card, never a crash or a hang."""

from __future__ import annotations

import errno
import os
import random
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.fake_server import (
    BAR_SIZE,
    TABLE,
    Answer,
    FakeServer,
    Raw,
    message,
    region_info,
)

from softcard import PlugError
from softcard.bridge.vfio_user import VfioUserCard, client
from softcard.bus.simulated import SimulatedBus, SimulatedDevice
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Command, Irq, Region

ALL_ONES = 0xFFFFFFFF
RW = wire.REGION_READABLE | wire.REGION_WRITABLE
SHORT = 0.2


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", SHORT)


def plugged(fake: FakeServer, bus: SimulatedBus) -> SimulatedDevice:
    return bus.plug(VfioUserCard(fake.path))[0]


def test_an_honest_server_is_a_card(fake: FakeServer, simulated_bus: SimulatedBus) -> None:
    device = plugged(fake, simulated_bus)
    device.write(0, 8, 0x1234)
    assert device.read(0, 8) == 0x1234
    device.enable_msix()
    for vector in (3, 1):
        os.eventfd_write(fake.eventfds[Irq.MSIX, vector], 1)
    simulated_bus.run_until(lambda: len(device.interrupts) == 2)
    assert sorted(device.take_interrupts()) == [1, 3]


# While the card is made.


def lie(about: int, /, **changed: int) -> Answer:
    """A REGION_INFO reply about one region; the others are nothing."""

    def answer(payload: bytes, fds: list[int]) -> bytes:
        asked = struct.unpack_from("<I", payload, 8)[0]
        if asked != about:
            return wire.REGION_INFO.pack(32, 0, asked, 0, 256 if asked == 7 else 0, 0)
        fields = {"argsz": 32, "flags": RW, "index": asked, "cap": 0, "size": BAR_SIZE, "base": 0}
        return wire.REGION_INFO.pack(*(fields | changed).values())

    return answer


LIES: dict[str, tuple[int, bytes | Answer, str]] = {
    "version": (Command.VERSION, wire.pack_version(1, 0, {}), "speaks version 1.0"),
    "minor version": (Command.VERSION, wire.pack_version(0, 2, {}), "speaks version 0.2"),
    "no version": (Command.VERSION, b"\0", "1 bytes, not 4 to 4096"),
    "no JSON": (Command.VERSION, bytes(4) + b"{", "no JSON"),
    "deep JSON": (Command.VERSION, bytes(4) + b"[" * 4000, "no JSON"),
    "odd capability": (
        Command.VERSION, wire.pack_version(0, 0, {"max_msg_fds": "many"}), "max_msg_fds is 'many'",
    ),
    "no PCI": (Command.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(16, 1, 9, 5), "no PCI device"),
    "few regions": (Command.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(16, 2, 7, 5), "has 7 regions"),
    "another region": (Command.DEVICE_GET_REGION_INFO, lie(0, index=5), "region 0, it describes 5"),
    "long region": (Command.DEVICE_GET_REGION_INFO, lie(0, argsz=1 << 31), "2147483648 bytes"),
    "short region": (Command.DEVICE_GET_REGION_INFO, b"short", "5 bytes, not 32"),
    "no configuration": (Command.DEVICE_GET_REGION_INFO, lie(7, size=0), "space has 0 bytes"),
    "much configuration": (Command.DEVICE_GET_REGION_INFO, lie(7, size=1 << 40), "1099511627776"),
    "large BAR": (Command.DEVICE_GET_REGION_INFO, lie(0, size=(1 << 64) - 1), "a BAR of"),
    "small BAR for the table": (Command.DEVICE_GET_REGION_INFO, lie(0, size=64), "does not fit"),
    "no BAR for the table": (Command.DEVICE_GET_REGION_INFO, lie(0, size=0), "does not have"),
    "many interrupts": (
        Command.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(16, 0, 0, 1 << 31), "2147483648 interrupts",
    ),
    "another interrupt": (
        Command.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(16, 0, 2, 1), "of type 2, asked for INTX",
    ),
    "short configuration": (Command.REGION_READ, bytes(16 + 255), "271 bytes, not 272"),
    "no ids": (Command.REGION_READ, bytes(16 + 256), "vendor_id 0x0 is out of range"),
    "all-ones": (Command.REGION_READ, bytes(16) + b"\xff" * 256, "type 255, so it is no endpoint"),
    "another reply": (Command.VERSION, message(1, Command.DMA_MAP, bytes(4)), "is no reply to"),
    "another id": (Command.VERSION, message(9, Command.VERSION, bytes(4)), "is no reply to"),
    "size 0": (Command.VERSION, Raw(wire.HEADER.pack(1, 1, 0, 1, 0)), "said to have 0 bytes"),
    "size 4G": (Command.VERSION, Raw(wire.HEADER.pack(1, 1, ALL_ONES, 1, 0)), "4294967295 bytes"),
    "garbage": (Command.VERSION, Raw(b"\x5a" * 100), "said to have 1515870810 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_is_one_sentence_before_the_card_is_plugged_in(fake: FakeServer, kind: str) -> None:
    command, answer, says = LIES[kind]
    fake.answers[command] = (lambda payload, fds: answer) if isinstance(answer, bytes) else answer
    with pytest.raises(PlugError) as caught:
        VfioUserCard(fake.path)
    text = str(caught.value)
    assert str(fake.path) in text
    assert "\n" not in text
    assert re.search(re.escape(says), text), text


def test_a_refusal_is_one_sentence(fake: FakeServer) -> None:
    def refuse(payload: bytes, fds: list[int]) -> bytes:
        raise OSError(errno.EPERM, "")

    fake.answers[Command.DEVICE_GET_INFO] = refuse
    with pytest.raises(PlugError, match="refuses DEVICE_GET_INFO: Operation not permitted"):
        VfioUserCard(fake.path)


@pytest.mark.parametrize("command", [Command.VERSION, Command.REGION_READ])
def test_silence_ends(fake: FakeServer, impatient: None, command: Command) -> None:
    fake.answers[command] = lambda payload, fds: None
    with pytest.raises(PlugError, match=f"has not answered {command.name}"):
        VfioUserCard(fake.path)


def test_a_list_of_capabilities_that_has_no_end_is_refused(fake: FakeServer) -> None:
    msix = fake.config.capabilities[0].base
    fake.config.file.storage[msix + 1] = msix
    with pytest.raises(PlugError, match="list of capabilities leads to"):
        VfioUserCard(fake.path)


def test_descriptors_that_nobody_asked_for_are_closed(
    fake: FakeServer, simulated_bus: SimulatedBus
) -> None:
    fd = os.memfd_create("unasked")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for command in (Command.VERSION, Command.DEVICE_GET_INFO, Command.DEVICE_GET_IRQ_INFO):
        fake.reply_fds[command] = [fd] * 16
    card = VfioUserCard(fake.path)
    connection = 2 * 2
    epoll_and_client = 3
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + connection + epoll_and_client
    card.close()
    os.close(fd)


# Memory.


def with_memory(
    fake: FakeServer, fd: int, areas: list[tuple[int, int]], *, base: int = 0, fds: int = 1
) -> None:
    """BAR 0 can be mapped."""
    honest = fake.answers[Command.DEVICE_GET_REGION_INFO]

    def answer(payload: bytes, received: list[int]) -> bytes | Raw | None:
        room, _, index = struct.unpack_from("<III", payload)
        if index:
            return honest(payload, received)
        info = region_info(0, BAR_SIZE, flags=RW | wire.REGION_MMAP, areas=areas, base=base)
        if room >= len(info):
            fake.reply_fds[Command.DEVICE_GET_REGION_INFO] = [fd] * fds
        return info[:room]

    fake.answers[Command.DEVICE_GET_REGION_INFO] = answer


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("bar")
    os.ftruncate(fd, BAR_SIZE)
    yield fd
    os.close(fd)


def test_memory_is_mapped_and_the_table_is_not(
    fake: FakeServer, simulated_bus: SimulatedBus, file: int
) -> None:
    with_memory(fake, file, [(0, BAR_SIZE)])
    device = plugged(fake, simulated_bus)
    ranges = [(shared.offset, shared.size) for shared in device.link.shared_ranges()]
    assert ranges == [(0, TABLE), (TABLE + 0x1000, BAR_SIZE - TABLE - 0x1000)]
    device.write(0, TABLE + 0x1000, 0x1234)
    assert os.pread(file, 2, TABLE + 0x1000) == b"\x34\x12"
    device.write(0, TABLE, 0xFEE00000)
    assert os.pread(file, 4, TABLE) == bytes(4)


def test_the_file_may_begin_before_the_region(
    fake: FakeServer, simulated_bus: SimulatedBus, file: int
) -> None:
    os.ftruncate(file, BAR_SIZE + 0x2000)
    with_memory(fake, file, [(0x3000, 0x1000)], base=0x2000)
    device = plugged(fake, simulated_bus)
    os.pwrite(file, b"here", 0x5000)
    assert device.read_block(0, 0x3000, 4) == b"here"
    (shared,) = device.link.shared_ranges()
    assert shared.fd_offset == 0x5000


def test_a_file_that_is_cut_short_is_empty_memory_from_then_on(
    fake: FakeServer, simulated_bus: SimulatedBus, file: int
) -> None:
    with_memory(fake, file, [(0x3000, 0x1000)])
    device = plugged(fake, simulated_bus)
    device.write(0, 0x3000, 7)
    os.ftruncate(file, 0)
    assert device.read(0, 0x3000) == 0
    device.write(0, 0x3000, 8)
    assert device.read(0, 0x3000) == 8


@pytest.mark.parametrize(
    ("areas", "base"),
    [
        ([(0x3000, 0x1000)], BAR_SIZE),
        ([(0x3000, 0x1000)], 1),
        ([(0x3000, 0x1000)], (1 << 64) - 1),
        ([(0x3001, 0xFFF)], 0),
    ],
)
def test_memory_that_cannot_be_mapped_is_asked_for(
    fake: FakeServer, simulated_bus: SimulatedBus, file: int, areas: list[tuple[int, int]],
    base: int,
) -> None:  # fmt: skip
    with_memory(fake, file, areas, base=base)
    device = plugged(fake, simulated_bus)
    assert not device.link.shared_ranges()
    device.write(0, 0x3004, 7)
    assert device.read(0, 0x3004) == fake.bar[0x3004] == 7


@pytest.mark.parametrize(
    ("areas", "fds", "says"),
    [
        ([(0x3000, 0x2000)], 1, "or reaches beyond"),
        ([((1 << 64) - 1, 2)], 1, "or reaches beyond"),
        ([(0x2000, 0x1000), (0x2000, 0x1000)], 1, "overlaps"),
        ([(0x3000, 0x1000)], 2, "with 2 files"),
    ],
)
def test_impossible_memory_is_refused(
    fake: FakeServer, file: int, areas: list[tuple[int, int]], fds: int, says: str
) -> None:
    with_memory(fake, file, areas, fds=fds)
    with pytest.raises(PlugError, match=says):
        VfioUserCard(fake.path)


# While it is plugged in.


BAD_READS: dict[str, tuple[Answer, str]] = {
    "short": (lambda payload, fds: payload + b"\0", "17 bytes, not 20"),
    "long": (lambda payload, fds: payload + bytes(5), "21 bytes, not 20"),
    "huge": (lambda payload, fds: payload + bytes(1 << 20), "is said to have|bytes, not 20"),
    "another id": (lambda payload, fds: message(0xFFFF, 9, payload + bytes(4)), "is no reply"),
    "cut": (lambda payload, fds: Raw(message(0, 9, payload + bytes(4))[:30]), "has not answered"),
    "nothing": (lambda payload, fds: None, "has not answered REGION_READ"),
    "another type": (lambda payload, fds: message(0, 9, payload, flags=7), "is no reply"),
}


@pytest.mark.parametrize("kind", BAD_READS)
def test_a_bad_answer_to_a_read_pulls_the_card(
    fake: FakeServer, simulated_bus: SimulatedBus, impatient: None, kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    answer, says = BAD_READS[kind]
    device = plugged(fake, simulated_bus)
    fake.answers[Command.REGION_READ] = answer
    assert device.read(0, 0) == ALL_ONES
    assert not device.present
    (record,) = [r for r in caplog.records if r.name == "softcard.bridge"]
    assert re.search(says, record.getMessage()), record.getMessage()
    assert "\n" not in record.getMessage()
    device.slot.unplug()


def test_a_refused_read_is_all_ones_and_the_card_stays(
    fake: FakeServer, simulated_bus: SimulatedBus
) -> None:
    device = plugged(fake, simulated_bus)
    honest = fake.answers[Command.REGION_READ]

    def refuse(payload: bytes, fds: list[int]) -> bytes | Raw | None:
        if wire.ACCESS.unpack(payload)[0] == 4:
            raise OSError(errno.EINVAL, "")
        return honest(payload, fds)

    fake.answers[Command.REGION_READ] = refuse
    assert device.read(0, 4) == ALL_ONES
    assert device.read(0, 8) == 0


def test_a_server_that_takes_nothing_loses_the_card_and_no_thread_waits_for_ever(
    fake: FakeServer, simulated_bus: SimulatedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = plugged(fake, simulated_bus)
    gate = threading.Event()
    monkeypatch.setattr("softcard.wire.stream.SEND_TIMEOUT", SHORT)

    def stuck(payload: bytes, fds: list[int]) -> None:
        gate.wait(60)

    fake.answers[Command.REGION_WRITE] = stuck
    while device.present:
        device.write(0, 0, 0)
    gate.set()


def test_a_server_may_ask_while_it_takes_nothing(
    fake: FakeServer, simulated_bus: SimulatedBus
) -> None:
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(1 << 20)
    length, count = 1 << 19, 16
    honest = fake.answers[Command.REGION_WRITE]

    def ask_first(payload: bytes, fds: list[int]) -> bytes | Raw | None:
        fake.answers[Command.REGION_WRITE] = honest
        for number in range(count):
            data = bytes([number]) * length
            fake.ask(Command.DMA_WRITE, wire.DMA_ACCESS.pack(memory.address, length) + data)
        return honest(payload, fds)

    fake.answers[Command.REGION_WRITE] = ask_first
    for number in range(2000):
        device.write(0, 0, number)
    assert device.read(0, 0) == 1999
    simulated_bus.run_until(lambda: len(fake.replies) == count)
    assert bytes(memory.view[:length]) == bytes([count - 1]) * length


@pytest.mark.parametrize(
    ("command", "payload", "error"),
    [
        (Command.DMA_READ, wire.DMA_ACCESS.pack(0x1000, 4), errno.EFAULT),
        (Command.DMA_WRITE, wire.DMA_ACCESS.pack(0x1000, 4) + b"abcd", errno.EFAULT),
        (Command.DMA_READ, wire.DMA_ACCESS.pack((1 << 64) - 1, 1 << 20), errno.EFAULT),
        (Command.DMA_READ, wire.DMA_ACCESS.pack(0, (1 << 20) + 1), errno.EINVAL),
        (Command.DMA_READ, wire.DMA_ACCESS.pack(0, (1 << 64) - 1), errno.EINVAL),
        (Command.DMA_WRITE, wire.DMA_ACCESS.pack(0, 5) + b"abcd", errno.EINVAL),
        (Command.DMA_READ, b"", errno.ENOTSUP),
        (Command.DEVICE_RESET, b"", errno.ENOTSUP),
        (Command.INTERRUPT, wire.INTERRUPT.pack(2, 0, 1), errno.ENOTSUP),
        (0x7777, bytes(100), errno.ENOTSUP),
    ],
)
def test_what_a_server_may_not_do_is_an_error_reply(
    fake: FakeServer, tmp_path: Path, command: int, payload: bytes, error: int
) -> None:
    with SimulatedBus(strict=False) as bus:
        device = plugged(fake, bus)
        fake.ask(command, payload)
        bus.run_until(lambda: fake.replies)
        ((ident, flags, rest),) = fake.replies
        assert (ident, flags, rest) == (0x77, wire.REPLY | wire.ERROR, b"")
        assert device.read(0, 0) == 0


def test_dma_is_answered_while_a_read_waits(fake: FakeServer, simulated_bus: SimulatedBus) -> None:
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(4096)
    memory.view[:4] = b"data"

    def read(payload: bytes, fds: list[int]) -> bytes:
        fake.ask(Command.DMA_READ, wire.DMA_ACCESS.pack(memory.address, 4))
        assert fake.sock is not None
        while not fake.replies:
            fake._serve(fake.sock)
        return payload + fake.replies[-1][2][16:]

    fake.answers[Command.REGION_READ] = read
    assert device.read(0, 0).to_bytes(4, "little") == b"data"


def test_a_question_right_before_a_reply_is_answered_at_once(
    fake: FakeServer, simulated_bus: SimulatedBus
) -> None:
    device = plugged(fake, simulated_bus)
    memory = simulated_bus.alloc(4096)
    question = wire.DMA_ACCESS.pack(memory.address, 4)

    def read(payload: bytes, fds: list[int]) -> bytes:
        asked = message(1, Command.DMA_READ, question, flags=wire.COMMAND)
        return Raw(asked + message(fake.ident, Command.REGION_READ, payload + bytes(4)))

    fake.answers[Command.REGION_READ] = read
    assert device.read(0, 0) == 0
    deadline = time.monotonic() + 5
    while not fake.replies:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("question", [True, False])
def test_an_interrupt_comes_before_the_reply_that_it_was_signalled_before(
    fake: FakeServer, simulated_bus: SimulatedBus, question: bool
) -> None:
    device = plugged(fake, simulated_bus)
    device.enable_msix()
    memory = simulated_bus.alloc(4096)

    def read(payload: bytes, fds: list[int]) -> bytes:
        assert fake.sock is not None
        if question:
            fake.replies.clear()
            ident = fake.ident
            fake.ask(Command.DMA_READ, wire.DMA_ACCESS.pack(memory.address, 4))
            while not fake.replies:
                fake._serve(fake.sock)
            fake.ident = ident
        os.eventfd_write(fake.eventfds[Irq.MSIX, 2], 1)
        return payload + bytes(4)

    fake.answers[Command.REGION_READ] = read
    for _ in range(100):
        assert device.read(0, 0) == 0
        assert device.take_interrupts() == [2]


def test_questions_without_end_do_not_keep_a_read_waiting(
    fake: FakeServer, simulated_bus: SimulatedBus, impatient: None
) -> None:
    device = plugged(fake, simulated_bus)
    stop = threading.Event()

    def babble(payload: bytes, fds: list[int]) -> None:
        while not stop.is_set():
            fake.ask(Command.DMA_READ, b"", flags=wire.NO_REPLY)

    fake.answers[Command.REGION_READ] = babble
    try:
        assert device.read(0, 0) == ALL_ONES
    finally:
        stop.set()
    assert not device.present


def test_a_refused_map_leaves_the_card_in_its_slot(
    fake: FakeServer, simulated_bus: SimulatedBus
) -> None:
    def refuse(payload: bytes, fds: list[int]) -> bytes:
        raise OSError(errno.ENOSPC, "")

    fake.answers[Command.DMA_MAP] = fake.answers[Command.DEVICE_SET_IRQS] = refuse
    device = plugged(fake, simulated_bus)
    simulated_bus.free(simulated_bus.alloc(4096))
    assert Command.DMA_UNMAP not in fake.seen
    assert device.read(0, 0) == 0


@pytest.mark.parametrize("seed", range(60))
def test_whatever_a_server_sends_the_card_is_there_or_pulled(
    fake: FakeServer, seed: int, impatient: None
) -> None:
    """Answers are damaged at random, and requests at random come between them."""
    chance = random.Random(seed)
    started = threading.Event()

    def damaged(command: int, honest: Answer) -> Answer:
        def answer(payload: bytes, fds: list[int]) -> bytes | Raw | None:
            reply = honest(payload, fds)
            if not started.is_set() or reply is None or chance.random() > 0.1:
                return reply
            if chance.random() < 0.5:
                size = chance.choice([0, 16, 17, 100, 5000])
                fake.ask(
                    chance.choice([*Command, 0, 99]), chance.randbytes(size),
                    flags=chance.choice([0, 0, 0, 16, 1, 33]),
                )  # fmt: skip
                return reply
            data = bytearray(message(fake.ident, command, reply))
            for _ in range(chance.randrange(4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            return Raw(data[: chance.choice([8, 20, len(data), len(data), len(data)])])

        return answer

    for command, honest in list(fake.answers.items()):
        fake.answers[command] = damaged(command, honest)
    if chance.random() < 0.5:
        started.set()
    with SimulatedBus(strict=False) as bus:
        bus.alloc(8192)
        try:
            device = plugged(fake, bus)
        except PlugError:
            return
        started.set()
        bits = chance.getrandbits
        for _ in range(300):
            if not device.present:
                break
            acts: list[Callable[[], object]] = [
                lambda: device.read(0, chance.randrange(BAR_SIZE - 8), 4),
                lambda: device.write(0, chance.randrange(BAR_SIZE - 8), 1, 4),
                lambda: device.config_read(chance.randrange(0, 256, 4)),
                lambda: device.config_write(chance.randrange(0, 256, 4), bits(32)),
                lambda: device.read_block(0, 0, BAR_SIZE),
                device.enable_msix,
                lambda: bus.free(bus.alloc(4096)),
                lambda: bus.run_for(1e-3),
            ]
            act = chance.choice(acts)
            try:
                act()
            except PlugError:
                assert act == device.enable_msix
        assert not device.endpoint.errors, device.endpoint.errors[0]


def test_the_configuration_space_ends_where_the_server_says(
    fake: FakeServer, simulated_bus: SimulatedBus
) -> None:
    device = plugged(fake, simulated_bus)
    assert device.config_read(0x100) == ALL_ONES
    assert device.config_read(0xFC) == 0
    assert fake.answers[Command.REGION_READ](
        wire.ACCESS.pack(0, Region.CONFIG, 4), []
    ) == wire.ACCESS.pack(0, Region.CONFIG, 4) + device.config_read(0).to_bytes(4, "little")
