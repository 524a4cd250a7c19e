"""Malformed vfio-user messages in great number: python -m tests.fuzz_vfio_user --messages 1000000

A server with a card of its own runs in another process. Sessions of random messages, most of them
nearly right, are thrown at it: wrong sizes, ids, flags, lengths and places, descriptors that are
too many, too few or of the wrong kind, memory that overlaps or is cut short, interrupts, transfers
that are answered wrongly or not at all, and streams that end anywhere. The card accesses memory
wildly meanwhile. In the end the server must be alive, must have touched no memory that was not
shared with it, must hold no more descriptors, threads and memory than in the beginning, and must
serve a good client. The same seed sends the same messages.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import json
import logging
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.unit.fake_vfio_client import (
    DMA_MAP,
    DMA_READ,
    DMA_UNMAP,
    EVENTFD,
    HEADER,
    MSIX,
    NO_REPLY,
    PAGE,
    QEMU_CAPABILITIES,
    REGION_READ,
    REGION_WRITE,
    REPLY,
    RESET,
    SET_IRQS,
    TRIGGER,
    VERSION,
    WRITE_MULTI,
    ClientMemory,
    FakeClient,
    Plugs,
    access,
    descriptors,
    dma_map,
    dma_unmap,
    pack,
    set_irqs,
    version,
)

from softcard import Bar, Card, DmaError, Memory, Msi, MsiX, Register
from softcard.bus.vfio_user import VfioUserServer

# Short, for the card waits that long for each transfer that is not answered.
REPLY_TIMEOUT = 0.01
SLOTS, SLOT_PAGES, SHARED_PAGES = 16, 4, 2
SLOT_AT, JUNK_AT = 0x100000, 0x10000000
SHARED, SECRET, WRITTEN = b"M", b"S", b"W"
VIEWS = 8
# The id of each unmap of a slot, and of nothing else.
UNMAPPING = 0xFFFF
LENGTHS = (0, 1, 2, 4, 8, 64, PAGE, PAGE + 1, 3 * PAGE)
WORDS = (
    0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 20, 24, 31, 32, 64, 255, 256, 4095, 4096, 4097, 1 << 16,
    1 << 20, (1 << 20) + 1, 1 << 31, (1 << 32) - 1,
)  # fmt: skip
LONGS = (*WORDS, SLOT_AT, JUNK_AT, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1)
SESSION = 400
# KiB; a heap is never quite the same.
RSS_GROWTH = 4096
# How long a server may be busy with itself.
PATIENCE = 60.0
FLUSH = 8192


class Target(Card):
    """Touches memory wherever it is told to."""

    vendor_id, device_id = 0x1DED, 0x0F02
    interrupt_pin = 1
    migratable = True
    msi = Msi(vectors=8)
    msix = MsiX(vectors=32, table=(2, 0), pba=(2, 0x800))

    class bar0(Bar, size=0x4000):
        scratch = Register(0x00, width=64)
        address = Register(0x08, width=64)
        length = Register(0x10)
        act = Register(0x14)
        memory = Memory(0x2000, 0x1000)

    class bar2(Bar, size=0x1000):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.views: list[memoryview] = []
        self.violations = self.reached = 0

    @bar0.act.on_write
    def do_something(self, what: int) -> None:
        """Read, write, map, write to views of old, or interrupt."""
        address, length = self.bar0.address.value, self.bar0.length.value % (4 * PAGE)
        try:
            match what % 5:
                case 0:
                    self.violations += SECRET in self.dma.read(address, length)
                case 1:
                    self.dma.write(address, WRITTEN * length)
                case 2:
                    self.views.append(self.dma.map(address, length))
                    del self.views[:-VIEWS]
                case 3:
                    for view in self.views:
                        self.violations += SECRET in bytes(view)
                        view[:] = WRITTEN * len(view)
                case 4:
                    self.interrupt(what % self.interrupts.vectors)
                    self.deassert(what % self.interrupts.vectors)
                    return
            self.reached += 1
        except DmaError:
            pass  # most of what it is told is wrong


@dataclass
class State:
    """What a server holds.

    Attributes:
        rss: KiB.
        reached: how often the card has reached memory.
        violations: how often it read what was not shared with it.
        failures: errors of the server itself in its log.
    """

    descriptors: int
    threads: int
    rss: int
    reached: int
    violations: int
    failures: int


def serve(path: Path) -> None:
    """Serve a card until standard input ends; for each line of it, print the state as JSON."""
    import softcard.wire.messages

    softcard.wire.messages.REPLY_TIMEOUT = REPLY_TIMEOUT
    faulthandler.enable()
    failures: list[str] = []

    class Failures(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                failures.append(record.getMessage())
                print(self.format(record), file=sys.stderr, flush=True)

    logging.getLogger("softcard").addHandler(Failures())
    threading.excepthook = lambda args: failures.append(repr(args.exc_value))
    card, plugs = Target(), Plugs()
    server = VfioUserServer(card, path, changed=plugs)
    print("ready", flush=True)
    for _ in sys.stdin:
        plugs.wait(connected=False)
        card.views.clear()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        state = State(
            descriptors(), threading.active_count(), int(status["VmRSS"].split()[0]),
            card.reached, card.violations, len(failures),
        )  # fmt: skip
        print(json.dumps(asdict(state)), flush=True)
    server.stop()


class Server:
    """The server's process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "card"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz_vfio_user", "--serve", str(self.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == "ready\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            # It shows what its threads do.
            self.process.send_signal(signal.SIGABRT)
        return self.process.stdout.readline()

    def state(self) -> State:
        """What it holds, with no client."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self._line()
        if not line:
            raise AssertionError(f"the server has ended with {self.process.wait()}")
        return State(**json.loads(line))

    def stop(self) -> int:
        """Let it end; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()


class Session:
    """One connection, and what it has shared."""

    def __init__(self, fuzzer: Fuzzer) -> None:
        self.fuzzer = fuzzer
        self.random = fuzzer.random
        self.shared: set[int] = set()
        self.unmapping: int | None = None
        self.broken = False
        self.migrates = self.random.random() < 0.2
        self.received = b""
        self.pending = b""
        self.alive = True
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(fuzzer.server.path))
        self.socket.setblocking(False)

    # Sending, while what comes is taken.

    def put(self, message: bytes, fds: list[int]) -> None:
        """Send a message, sooner or later."""
        if not fds:
            self.pending += message
            if len(self.pending) > FLUSH:
                self.flush()
            return
        self.flush()
        while self.alive:
            try:
                sent = socket.send_fds(self.socket, [message], fds)
            except BlockingIOError:
                self._wait()
            except OSError:
                self.alive = False
            else:
                self.pending = message[sent:]
                return

    def flush(self) -> None:
        """Send what is pending."""
        while self.alive and self.pending:
            try:
                self.pending = self.pending[self.socket.send(self.pending) :]
            except BlockingIOError:
                self._wait()
            except OSError:
                self.alive = False
        self.take()

    def _wait(self) -> None:
        ready = select.select([self.socket], [self.socket], [], 10)
        if not ready[0] and not ready[1]:
            raise AssertionError("the server takes nothing any more")
        self.take()

    def take(self) -> None:
        """Receive what has come, and answer what the server asks."""
        try:
            while self.alive:
                data, fds, _, _ = socket.recv_fds(self.socket, 1 << 16, 16)
                for fd in fds:
                    os.close(fd)
                self.alive = bool(data)
                self.received += data
        except BlockingIOError:
            pass
        except OSError:
            self.alive = False
        while len(self.received) >= HEADER.size:
            ident, command, size, flags, _ = HEADER.unpack_from(self.received)
            if len(self.received) < size:
                break
            payload, self.received = self.received[HEADER.size : size], self.received[size:]
            if flags & 0xF == 0:
                self._answer(ident, command, payload)
            elif command == DMA_UNMAP and ident == UNMAPPING:
                if not flags & 0x20:
                    assert self.unmapping is not None
                    self.fuzzer.unshared(self.unmapping)
                self.unmapping = None

    def _answer(self, ident: int, command: int, payload: bytes) -> None:
        rnd = self.random.random()
        if rnd < 0.02:
            return
        _, count = struct.unpack_from("<QQ", payload)
        data = payload[:16] + (SHARED * count if command == DMA_READ else b"")
        if rnd < 0.04:
            data = data[: self.random.randrange(len(data) + 1)]
        elif rnd < 0.06:
            self.put(HEADER.pack(ident, command, 16, REPLY | 0x20, self.random.choice(WORDS)), [])
            return
        elif rnd < 0.061:
            ident ^= 1 << self.random.randrange(16)
        self.put(pack(command, data, flags=REPLY, ident=ident), [])

    def unmap(self, slot: int, address: int) -> None:
        """Unmap a slot, and wait until the server has said that it is."""
        self.unmapping = slot
        self.put(pack(DMA_UNMAP, dma_unmap(address, SHARED_PAGES * PAGE), ident=UNMAPPING), [])
        self.flush()
        while self.alive and self.unmapping is not None:
            if not select.select([self.socket], [], [], 10)[0]:
                raise AssertionError("the server answers no more")
            self.flush()

    def end(self) -> None:
        """Hang up in some way, and wait until nothing can be touched any more."""
        self.flush()
        rnd = self.random.random()
        if self.alive and rnd < 0.3:
            self.socket.shutdown(socket.SHUT_WR)
        if self.alive and rnd < 0.6:
            # Half a message.
            message = pack(REGION_WRITE, access(0, 0, 8) + bytes(8))
            self.put(message[: self.random.randrange(len(message))], [])
            self.flush()
        self.socket.close()


class Fuzzer:
    """Sends messages to a server."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.sent = 0
        self.memory = ClientMemory(SLOTS * SLOT_PAGES * PAGE)
        self.memory.view[:] = SECRET * self.memory.size
        self.images: dict[int, bytes] = {}
        self.junk = ClientMemory(64 * PAGE)
        reading, writing = os.pipe()
        self.fds = {
            "eventfd": os.eventfd(0, os.EFD_NONBLOCK),
            "blocking": os.eventfd(0),
            "pipe": reading,
            "writing": writing,
            "folder": os.open("/", os.O_RDONLY),
            "null": os.open("/dev/null", os.O_RDWR),
            "socket": socket.socket(socket.AF_UNIX).detach(),
        }
        os.eventfd_write(self.fds["blocking"], (1 << 64) - 2)
        self.makers = (
            (20, self._register),
            (8, self._posted),
            (10, self._act),
            (8, self._share),
            (2, self._unshare),
            (6, self._map_junk),
            (6, self._interrupts),
            (3, self._multi),
            (10, self._any),
            (1, self._reset),
            (3, self._feature),
        )
        self._weights = [weight for weight, _ in self.makers]
        self._makers = [maker for _, maker in self.makers]

    def close(self) -> None:
        """Forget everything."""
        for fd in self.fds.values():
            os.close(fd)
        self.memory.close()
        self.junk.close()

    def run(self, messages: int) -> None:
        """Send so many messages."""
        end = self.sent + messages
        while self.sent < end:
            session = Session(self)
            self._greet(session)
            for _ in range(min(self.random.randrange(2 * SESSION), end - self.sent)):
                if not session.alive:
                    break
                self.sent += 1
                if self.random.random() < 0.0015:
                    self._break(session)
                else:
                    self.random.choices(self._makers, self._weights)[0](session)
            session.end()
            self._settle(session)
            if self.random.random() < 0.05:
                os.ftruncate(self.junk.fd, self.junk.size)

    def _settle(self, session: Session) -> None:
        """The next client is served only when everything of the last one is gone."""
        with FakeClient(self.server.path):
            pass
        for slot in session.shared:
            self.unshared(slot)
        session.shared.clear()
        self.check()

    def check(self) -> None:
        """Nothing may have changed that was not shared at the time."""
        for slot in range(SLOTS):
            start = (slot * SLOT_PAGES + SHARED_PAGES) * PAGE
            rest = bytes(self.memory.view[start : start + (SLOT_PAGES - SHARED_PAGES) * PAGE])
            if rest != SECRET * len(rest):
                raise AssertionError(f"memory behind slot {slot} was written")
        for slot, image in self.images.items():
            if bytes(self._shared_part(slot)) != image:
                raise AssertionError(f"memory of slot {slot} was written after its unmap")

    def _shared_part(self, slot: int) -> memoryview:
        start = slot * SLOT_PAGES * PAGE
        return self.memory.view[start : start + SHARED_PAGES * PAGE]

    def unshared(self, slot: int) -> None:
        """The server has said that it does not use a slot's memory any more."""
        part = self._shared_part(slot)
        part[:] = SECRET * len(part)
        self.images[slot] = bytes(part)

    # Messages.

    def _flags(self) -> int:
        rnd = self.random.random()
        return 0 if rnd < 0.9 else NO_REPLY if rnd < 0.98 else self.random.choice(WORDS) & ~0xF

    def _put(
        self, session: Session, command: int, payload: bytes, fds: list[int] | None = None
    ) -> None:
        ident = self.random.randrange(UNMAPPING)
        session.put(pack(command, payload, flags=self._flags(), ident=ident), fds or [])

    def _greet(self, session: Session) -> None:
        rnd = self.random.random()
        if rnd < 0.03:
            return
        data = version(QEMU_CAPABILITIES)
        if rnd < 0.06:
            data = data[: self.random.randrange(len(data))]
        elif rnd < 0.09:
            at = self.random.randrange(len(data))
            data = data[:at] + self.random.randbytes(self.random.randrange(4)) + data[at + 1 :]
        elif rnd < 0.1:
            offered = {"capabilities": {"softcard_interrupts": True, "max_data_xfer_size": 100}}
            data = version(offered)
        session.put(pack(VERSION, data), [])
        # Memory space and bus master enable.
        session.put(pack(REGION_WRITE, access(4, 7, 2) + b"\6\0", flags=NO_REPLY), [])

    def _register(self, session: Session) -> None:
        rnd = self.random
        region = rnd.choice((0, 0, 0, 2, 7, 7, 6, 8, rnd.choice(WORDS)))
        offset, count = rnd.choice(LONGS), rnd.choice(WORDS)
        if rnd.random() < 0.7:
            offset, count = rnd.randrange(0x5000), rnd.randrange(10)
        if rnd.random() < 0.5:
            self._put(session, REGION_READ, access(offset, region, count))
            return
        given = count if rnd.random() < 0.9 else rnd.randrange(20)
        # What a driver would not do: switch the card off for good.
        data = b"\xff" * min(given, 4096) if region == 7 else rnd.randbytes(min(given, 4096))
        self._put(session, REGION_WRITE, access(offset, region, count) + data)

    def _posted(self, session: Session) -> None:
        for _ in range(self.random.randrange(8)):
            data = access(self.random.randrange(0x14), 0, 4) + self.random.randbytes(4)
            session.put(pack(REGION_WRITE, data, flags=NO_REPLY), [])

    def _act(self, session: Session) -> None:
        rnd = self.random
        if rnd.random() < 0.7:
            address = SLOT_AT + rnd.randrange(SLOTS) * SLOT_PAGES * PAGE
            address += rnd.choice(
                (-1, 0, PAGE - 1, 2 * PAGE - 1, 2 * PAGE, rnd.randrange(4 * PAGE))
            )
        else:
            address = JUNK_AT + rnd.randrange(-PAGE, 70 * PAGE)
        what = struct.pack("<QII", address, rnd.choice(LENGTHS), rnd.getrandbits(31))
        session.put(pack(REGION_WRITE, access(8, 0, 16) + what, flags=NO_REPLY), [])

    def _share(self, session: Session) -> None:
        """Share a slot's memory properly."""
        slot = self.random.randrange(SLOTS)
        if slot in session.shared:
            return
        session.shared.add(slot)
        self.images.pop(slot, None)
        part = self._shared_part(slot)
        part[:] = SHARED * len(part)
        address = SLOT_AT + slot * SLOT_PAGES * PAGE
        payload = dma_map(address, len(part), offset=slot * SLOT_PAGES * PAGE)
        fds = [] if self.random.random() < 0.3 else [self.memory.fd]
        session.put(pack(DMA_MAP, payload), fds)

    def _unshare(self, session: Session) -> None:
        """Take it back properly, sometimes what was never shared."""
        slot = self.random.randrange(SLOTS)
        if session.broken:
            return
        session.unmap(slot, SLOT_AT + slot * SLOT_PAGES * PAGE)
        if session.alive:
            session.shared.discard(slot)

    def _map_junk(self, session: Session) -> None:
        """Map and unmap memory that is nobody's secret, in every wrong way."""
        rnd = self.random
        if rnd.random() < 0.1:
            os.ftruncate(self.junk.fd, rnd.choice((0, PAGE, 32 * PAGE, 64 * PAGE)))
        address = JUNK_AT + rnd.randrange(64) * PAGE
        size = rnd.randrange(1, 8) * PAGE
        offset = rnd.randrange(64) * PAGE
        flags = rnd.choice((3, 3, 3, 1, 2, 0))
        if rnd.random() < 0.3:
            which = rnd.randrange(4)
            if which == 0:
                address = rnd.choice(LONGS)
                if SLOT_AT - (1 << 20) < address < SLOT_AT + (1 << 20):
                    address = JUNK_AT
            elif which == 1:
                size = rnd.choice(WORDS[:-6])
            elif which == 2:
                offset = rnd.choice(LONGS)
            else:
                flags = rnd.choice(WORDS)
        if rnd.random() < 0.4:
            self._put(session, DMA_UNMAP, dma_unmap(address, size, flags=flags & 4))
            return
        payload = dma_map(address, size, flags=flags, offset=offset)
        fds = [self.junk.fd] * rnd.choice((0, 1, 1, 1, 1, 2))
        if rnd.random() < 0.1:
            fds = [rnd.choice(list(self.fds.values()))]
        if rnd.random() < 0.05:
            payload = payload[: rnd.randrange(len(payload))]
        self._put(session, DMA_MAP, payload, fds)

    def _interrupts(self, session: Session) -> None:
        rnd = self.random
        kind, start, count = rnd.randrange(3), rnd.randrange(4), rnd.randrange(1, 9)
        flags = rnd.choice((1, 2, 4, 4)) | rnd.choice((8, 16, 32, 32))
        if kind == 0:
            start, count = 0, 1
        if rnd.random() < 0.2:
            flags, kind, start, count = (rnd.choice(WORDS) for _ in range(4))
        data, fds = b"", []
        if flags & EVENTFD:
            fds = [self.fds["eventfd"]] * min(count, 16)
            if rnd.random() < 0.2:
                fds = [rnd.choice(list(self.fds.values())) for _ in range(rnd.randrange(5))]
        else:
            data = rnd.randbytes(rnd.choice((count, count + 1, 0)) % 64)
        self._put(session, SET_IRQS, set_irqs(flags, kind, start, count, data), fds)

    def _multi(self, session: Session) -> None:
        rnd = self.random
        count = rnd.randrange(6)
        writes = b"".join(
            struct.pack("<QIIQ", rnd.randrange(0x14), rnd.choice((0, 0, 2, 99)), rnd.randrange(10),
                        rnd.getrandbits(64))
            for _ in range(count)
        )  # fmt: skip
        given = count if rnd.random() < 0.8 else rnd.choice(LONGS)
        self._put(session, WRITE_MULTI, struct.pack("<Q", given) + writes)

    def _reset(self, session: Session) -> None:
        self._put(session, RESET, b"" if self.random.random() < 0.8 else b"x")
        session.put(pack(REGION_WRITE, access(4, 7, 2) + b"\6\0", flags=NO_REPLY), [])

    def _feature(self, session: Session) -> None:
        """Migration and DMA logging; not in every session, for a stopped card does little."""
        rnd = self.random
        if not session.migrates:
            return
        if rnd.random() < 0.3:
            size = rnd.choice(WORDS)
            data = rnd.randbytes(size if rnd.random() < 0.5 and size < 4097 else 8)
            self._put(session, rnd.choice((17, 18)), struct.pack("<II", 1 << 21, size) + data)
            return
        flags = rnd.choice((1, 2, 6, 7, 8, rnd.randrange(12))) | rnd.randrange(1, 8) << 16
        numbers = [rnd.choice((rnd.randrange(8), rnd.choice(LONGS))) for _ in range(3)]
        data = rnd.choice((
            b"",
            struct.pack("<Ii", rnd.randrange(9), -1),
            struct.pack("<QII", PAGE, 1, 0) + struct.pack("<QQ", SLOT_AT, 1 << 20),
            struct.pack("<QQQ", SLOT_AT, 1 << 20, PAGE),
            struct.pack("<QQQ", *numbers),
        ))  # fmt: skip
        self._put(session, 16, struct.pack("<II", rnd.choice((8, 4096, 1 << 20)), flags) + data)

    def _any(self, session: Session) -> None:
        """Any command with a payload of interesting numbers, and sometimes a descriptor."""
        rnd = self.random
        command = rnd.choice((*range(4, 9), *range(11, 19), rnd.getrandbits(16)))
        numbers = [rnd.choice(WORDS) for _ in range(rnd.randrange(10))]
        payload = struct.pack(f"<{len(numbers)}I", *numbers) + rnd.randbytes(rnd.randrange(3))
        fds = []
        if rnd.random() < 0.05:
            fds = [rnd.choice(list(self.fds.values())) for _ in range(rnd.randrange(1, 16))]
        self._put(session, command, payload, fds)

    def _break(self, session: Session) -> None:
        """Something that no stream survives, or that swallows what follows."""
        rnd = self.random
        session.broken = True
        match rnd.randrange(5):
            case 0:
                session.put(pack(REGION_READ, access(0, 0, 4), size=rnd.choice(WORDS)), [])
            case 1:
                session.put(pack(rnd.getrandbits(16), flags=rnd.randrange(1, 16)), [])
            case 2:
                session.put(rnd.randbytes(rnd.randrange(1, 4096)), [])
            case 3:
                session.put(pack(DMA_MAP, dma_map(JUNK_AT, PAGE)), [self.junk.fd] * 20)
            case 4:
                for _ in range(8):
                    session.put(b"\0" * 3, [self.junk.fd] * 16)


def check_good_client(path: Path) -> None:
    """What a driver needs works."""
    with FakeClient(path) as client, ClientMemory() as memory:
        client.enable()
        client.map(memory, SLOT_AT)
        memory.view[:4] = b"good"
        client.write_block(0, 8, struct.pack("<QII", SLOT_AT + 8, 4, 1))
        client.read(0, 0)
        assert bytes(memory.view[:12]) == b"good" + bytes(4) + WRITTEN * 4
        event = os.eventfd(0, os.EFD_NONBLOCK)
        client.wire(MSIX, [event])
        client.ask(SET_IRQS, set_irqs(1 | TRIGGER, MSIX, 0, 1))
        assert os.eventfd_read(event) == 1
        os.close(event)
        client.unmap(SLOT_AT, memory.size)


def fuzz(messages: int, seed: int) -> tuple[State, State]:
    """Send so many messages; the server's state early on, and in the end.

    Raises:
        AssertionError: something has gone wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        fuzzer = Fuzzer(server, seed)
        try:
            check_good_client(server.path)
            fresh = server.state()
            fuzzer.run(messages // 10)
            check_good_client(server.path)
            before = server.state()
            fuzzer.run(messages - fuzzer.sent)
            check_good_client(server.path)
            after = server.state()
        finally:
            code = server.stop()
            fuzzer.close()
    assert not code, f"the server has ended with {code}"
    assert not after.violations, f"it read secret memory {after.violations} times"
    assert not after.failures, f"the server has logged {after.failures} errors"
    assert after.descriptors == fresh.descriptors, f"descriptors: {fresh} {after}"
    assert after.threads == fresh.threads, f"threads: {fresh} {after}"
    assert after.rss <= before.rss + RSS_GROWTH, f"memory: {before} {after}"
    return before, after


def main() -> None:
    """Fuzz, and print what became of the server."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_vfio_user")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    start = time.monotonic()
    before, after = fuzz(options.messages, options.seed)
    print(
        f"{options.messages} messages with seed {options.seed} in {time.monotonic() - start:.0f} s"
    )
    print(f"after the first tenth: {before}")
    print(f"in the end:            {after}")


if __name__ == "__main__":
    main()
