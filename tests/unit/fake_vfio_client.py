"""A vfio-user client that speaks each message by hand, and a card for it to talk to."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from softcard import Bar, Card, Memory, Msi, MsiX, Register, ResetKind
from softcard.bus.vfio_user import VfioUserServer

TIMEOUT = 10.0
HEADER = struct.Struct("<HHIII")
VERSION, DMA_MAP, DMA_UNMAP, DEVICE_INFO, REGION_INFO, REGION_IO_FDS = 1, 2, 3, 4, 5, 6
IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE = 7, 8, 9, 10, 11, 12
RESET, WRITE_MULTI, FEATURE, INTERRUPT = 13, 15, 16, 0x5343
REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
ROM, CONFIG, VGA = 6, 7, 8
INTX, MSI, MSIX = 0, 1, 2
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
COMMAND_REGISTER = 4
MEMORY_SPACE, BUS_MASTER = 2, 4
PAGE = mmap.PAGESIZE
# What Debian's QEMU sends; with its header 214 bytes are sent and as many are received at most.
QEMU_CAPABILITIES = {
    "capabilities": {
        "migration": {"pgsize": 4096, "max_bitmap_size": 256 << 20},
        "max_msg_fds": 8,
        "max_data_xfer_size": 1 << 20,
        "pgsizes": 4096,
        "max_dma_maps": 65535,
        "write_multiple": True,
    }
}


class Got(NamedTuple):
    """A message of the server's."""

    ident: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: list[int]


class RefusedError(Exception):
    """The server has replied with an error."""

    def __init__(self, error: int) -> None:
        super().__init__(errno.errorcode.get(error, str(error)))
        self.error = error


def pack(
    command: int, payload: bytes = b"", *, flags: int = 0, ident: int = 0, size: int | None = None
) -> bytes:
    """A whole message, of a wrong size if need be."""
    length = HEADER.size + len(payload) if size is None else size
    return HEADER.pack(ident, command, length, flags, 0) + payload


def version(data: object = None, *, major: int = 0, minor: int = 0) -> bytes:
    """The payload of VERSION; without data when that is None."""
    text = b"" if data is None else json.dumps(data).encode() + b"\0"
    return struct.pack("<HH", major, minor) + text


def access(offset: int, region: int, count: int) -> bytes:
    """The payload of REGION_READ, and the start of that of REGION_WRITE."""
    return struct.pack("<QII", offset, region, count)


def dma_map(address: int, size: int, *, flags: int = 3, offset: int = 0) -> bytes:
    """The payload of DMA_MAP."""
    return struct.pack("<IIQQQ", 32, flags, offset, address, size)


def dma_unmap(address: int, size: int, *, flags: int = 0) -> bytes:
    """The payload of DMA_UNMAP."""
    return struct.pack("<IIQQ", 24, flags, address, size)


def set_irqs(flags: int, kind: int, start: int, count: int, data: bytes = b"") -> bytes:
    """The payload of DEVICE_SET_IRQS."""
    return struct.pack("<IIIII", 20 + len(data), flags, kind, start, count) + data


class FakeClient:
    """A connection to a server; every wait ends after 10 s.

    Args:
        peer: the server's socket, or a connected one.
        capabilities: what VERSION offers; nothing is sent where it is None.
    """

    def __init__(
        self, peer: Path | socket.socket, capabilities: object = QEMU_CAPABILITIES
    ) -> None:
        if isinstance(peer, Path):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(TIMEOUT)
            self.socket.connect(str(peer))
        else:
            self.socket = peer
            self.socket.settimeout(TIMEOUT)
        self.ident = 0
        self.waiting: list[Got] = []
        if capabilities is not None:
            self.ask(VERSION, version(capabilities))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def send(
        self, command: int, payload: bytes = b"", *, fds: Sequence[int] = (), flags: int = 0
    ) -> int:
        """Send a command; returns its id."""
        self.ident = (self.ident + 1) % (1 << 16)
        message = pack(command, payload, flags=flags, ident=self.ident)
        sent = socket.send_fds(self.socket, [message], list(fds)) if fds else 0
        if sent < len(message):
            self.socket.sendall(message[sent:])
        return self.ident

    def receive(self) -> Got:
        """The next message; `EOFError` at the end of the stream."""
        if self.waiting:
            return self.waiting.pop(0)
        header, fds, _, _ = socket.recv_fds(self.socket, HEADER.size, 16)
        header += self._exactly(HEADER.size - len(header)) if header else b""
        if not header:
            raise EOFError
        ident, command, size, flags, error = HEADER.unpack(header)
        return Got(ident, command, flags, error, self._exactly(size - HEADER.size), fds)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def hung_up(self) -> bool:
        """Whether the server ends the connection, whatever it says before."""
        try:
            while True:
                self.receive()
        except (EOFError, ConnectionError):
            return True

    def reply_to(self, ident: int) -> Got:
        """The reply to one command; other messages wait for `receive`."""
        others: list[Got] = []
        while True:
            got = self.receive()
            if got.flags & 0xF == REPLY and got.ident == ident:
                self.waiting = others + self.waiting
                if got.flags & ERROR:
                    raise RefusedError(got.error)
                return got
            others.append(got)

    def ask(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> bytes:
        """Send a command and return its reply's payload."""
        got = self.reply_to(self.send(command, payload, fds=fds))
        assert got.command == command
        assert not got.fds
        return got.payload

    def answer(self, got: Got, payload: bytes = b"", *, error: int = 0) -> None:
        """Reply to a command of the server's."""
        flags = REPLY | (ERROR if error else 0)
        size = HEADER.size + len(payload)
        self.socket.sendall(HEADER.pack(got.ident, got.command, size, flags, error) + payload)

    # What a driver would have sent.

    def enable(self) -> None:
        """Set memory space and bus master enable."""
        self.write(CONFIG, COMMAND_REGISTER, 2, MEMORY_SPACE | BUS_MASTER)

    def read(self, region: int, offset: int, count: int = 4) -> int:
        """Read a register."""
        return int.from_bytes(self.read_block(region, offset, count), "little")

    def read_block(self, region: int, offset: int, count: int) -> bytes:
        """Read any number of bytes."""
        reply = self.ask(REGION_READ, access(offset, region, count))
        assert reply[:16] == access(offset, region, count)
        assert len(reply) == 16 + count
        return reply[16:]

    def write(
        self, region: int, offset: int, count: int, value: int, *, posted: bool = False
    ) -> None:
        """Write a register."""
        self.write_block(region, offset, value.to_bytes(count, "little"), posted=posted)

    def write_block(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write any number of bytes."""
        payload = access(offset, region, len(data)) + data
        if posted:
            self.send(REGION_WRITE, payload, flags=NO_REPLY)
        else:
            assert self.ask(REGION_WRITE, payload) == payload[:16]

    def map(
        self, memory: ClientMemory, address: int, *, offset: int = 0, size: int | None = None,
        flags: int = 3,
    ) -> None:  # fmt: skip
        """Share memory."""
        size = memory.size if size is None else size
        assert not self.ask(
            DMA_MAP, dma_map(address, size, flags=flags, offset=offset), fds=[memory.fd]
        )

    def unmap(self, address: int, size: int) -> None:
        """Share it no longer."""
        assert self.ask(DMA_UNMAP, dma_unmap(address, size)) == dma_unmap(address, size)

    def wire(self, kind: int, fds: Sequence[int], *, start: int = 0) -> None:
        """Have eventfds signalled."""
        payload = set_irqs(EVENTFD | TRIGGER, kind, start, len(fds))
        assert not self.ask(SET_IRQS, payload, fds=fds)


class ClientMemory:
    """A file in memory that can be shared with a server.

    Args:
        size: bytes.
        sealed: nobody can cut it short.
    """

    def __init__(self, size: int = PAGE, *, sealed: bool = False) -> None:
        self.size = size
        self.fd = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        if sealed:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._mmap = mmap.mmap(self.fd, size)
        self.view = memoryview(self._mmap)

    def close(self) -> None:
        """Forget it."""
        self.view.release()
        self._mmap.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Board(Card):
    """A bit of everything: a register that is plain, one that is remembered, one that is slow, one
    that interrupts, plain memory, MSI and MSI-X, and whatever a test hangs on it."""

    vendor_id, device_id = 0x1DED, 0x0A01
    interrupt_pin = 1
    msi = Msi(vectors=4)
    msix = MsiX(vectors=24, table=(4, 0), pba=(4, 0x800))

    class bar0(Bar, size=0x1000):
        scratch = Register(0x00, width=64)
        noted = Register(0x08)
        interrupt_now = Register(0x0C)
        release = Register(0x10)
        slow = Register(0x14)
        act = Register(0x18)
        broken = Register(0x1C)

    class bar2(Bar, size=1 << 21, bits=64, prefetchable=True):
        low = Memory(0, 1 << 20)
        high = Memory((1 << 20) + PAGE, PAGE)

    class bar4(Bar, size=0x1000):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.resets: list[ResetKind] = []
        self.noted: list[int] = []
        self.removed: list[tuple[int, int]] = []
        self.unplugs = 0
        self.action: Callable[[], object] = lambda: None
        self.result: Any = None

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)

    def on_unplug(self) -> None:
        self.unplugs += 1

    def on_memory_removed(self, address: int, size: int) -> None:
        self.removed.append((address, size))

    @bar0.noted.on_write
    def note(self, value: int) -> None:
        self.noted.append(value)

    @bar0.interrupt_now.on_write
    def interrupt_this(self, vector: int) -> None:
        self.interrupt(vector)

    @bar0.release.on_write
    def release_this(self, vector: int) -> None:
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

    @bar0.act.on_write
    def do_something(self, _value: int) -> None:
        self.result = self.action()

    @bar0.broken.on_read
    def read_broken(self) -> int:
        raise RuntimeError("broken on purpose")


SCRATCH, NOTED, INTERRUPT_NOW, RELEASE, SLOW, ACT, BROKEN = 0, 8, 12, 16, 20, 24, 28


class Plugs:
    """Waits until a server has plugged its card in or unplugged it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.connected = False
        self.count = 0

    def __call__(self, connected: bool) -> None:
        with self._condition:
            self.connected = connected
            self.count += connected
            self._condition.notify_all()

    def wait(self, *, connected: bool) -> None:
        """Until it is so."""
        with self._condition:
            assert self._condition.wait_for(lambda: self.connected == connected, TIMEOUT)


@contextmanager
def served(card: Card, folder: Path, **options: Any) -> Iterator[VfioUserServer]:
    """The card, at a socket of its own."""
    server = VfioUserServer(card, folder / "card", **options)
    try:
        yield server
    finally:
        if isinstance(card, Board):
            card.gate.set()
        server.stop()


def in_thread(call: Callable[[], object]) -> Callable[[], Any]:
    """Start `call` on a thread of its own; what is returned waits for its result."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join() -> Any:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        if errors:
            raise errors[0]
        return results[0]

    return join


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def raised(fd: int) -> int:
    """What an eventfd has counted, taken; 0 for nothing."""
    os.set_blocking(fd, False)
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
