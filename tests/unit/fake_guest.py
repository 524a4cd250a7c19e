"""A vhost-user front-end in Python: what User Mode Linux says to a card, spoken by hand."""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import Self

HEADER = struct.Struct("<III")
COMMAND = struct.Struct("<BBHIQ")
DESCRIPTOR = struct.Struct("<QIHH")
USED = struct.Struct("<II")

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 8, 9, 10
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE = 15, 16, 18
SET_SLAVE_REQ_FD, GET_CONFIG, VRING_KICK = 21, 24, 35
VERSION = 1
NEED_REPLY = 8
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30

CFG_READ, CFG_WRITE, MMIO_READ, MMIO_WRITE, MMIO_MEMSET, INT, MSI, PME = range(1, 9)
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_NOTIFY = 1
COMMANDS, INTERRUPTS = 0, 1

TIMEOUT = 5.0
MEMORY_SIZE = 1 << 20
# Nothing begins at 0, so that a stray 0 is an address outside.
MEMORY_ADDRESS = 0x100000
ENTRIES = 64
QUEUE_BYTES = 0x4000
INTERRUPT_BUFFERS, INTERRUPT_BUFFER_SIZE = 10, 20
BUFFERS = MEMORY_ADDRESS + 2 * QUEUE_BYTES
INTERRUPT_AREA = MEMORY_ADDRESS + MEMORY_SIZE - 0x1000


class Queue:
    """The driver's side of a split virtqueue, in the fake guest's memory."""

    def __init__(self, guest: FakeGuest, number: int, entries: int = ENTRIES) -> None:
        self.guest = guest
        self.number = number
        self.entries = entries
        self.desc = MEMORY_ADDRESS + number * QUEUE_BYTES
        self.avail = self.desc + 0x1000
        self.used = self.desc + 0x2000
        self.offered = 0
        self.taken = 0

    def set_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int
    ) -> None:
        """Write one entry of the descriptor table."""
        self.guest.write(self.desc + 16 * index, DESCRIPTOR.pack(address, length, flags, following))

    def offer(self, head: int) -> None:
        """Make a chain available."""
        self.guest.write(
            self.avail + 4 + 2 * (self.offered % self.entries), struct.pack("<H", head)
        )
        self.offered = (self.offered + 1) & 0xFFFF
        self.guest.write(self.avail + 2, struct.pack("<H", self.offered))

    @property
    def wants_kick(self) -> bool:
        """Whether the device asks to be told."""
        return not self.guest.read(self.used, 2)[0] & NO_NOTIFY

    @property
    def done(self) -> int:
        """Index of the used ring."""
        return int.from_bytes(self.guest.read(self.used + 2, 2), "little")

    def take(self) -> tuple[int, int] | None:
        """The next chain that the device has used, and the bytes it wrote."""
        if self.done == self.taken:
            return None
        entry = self.guest.read(self.used + 4 + 8 * (self.taken % self.entries), 8)
        self.taken = (self.taken + 1) & 0xFFFF
        head, length = USED.unpack(entry)
        return head, length


class FakeGuest:
    """Connects to a card; `boot` does the whole handshake.

    Attributes:
        commands, interrupts: the two queues.
        messages: the interrupts that came, as `(op, address, data)`.
    """

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(str(path))
        self.memory_fd = os.memfd_create("fake guest")
        os.ftruncate(self.memory_fd, MEMORY_SIZE)
        self.memory = mmap.mmap(self.memory_fd, MEMORY_SIZE)
        self.calls, self.calls_write = os.pipe()
        self.commands = Queue(self, COMMANDS)
        self.interrupts = Queue(self, INTERRUPTS)
        self.messages: list[tuple[int, int, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close_socket(self) -> None:
        """Hang up."""
        self.socket.close()

    def close(self) -> None:
        """Hang up, and free all resources."""
        self.close_socket()
        self.memory.close()
        for fd in (self.memory_fd, self.calls, self.calls_write):
            os.close(fd)

    # Memory.

    def read(self, address: int, length: int) -> bytes:
        """The guest's memory."""
        start = address - MEMORY_ADDRESS
        return self.memory[start : start + length]

    def write(self, address: int, data: bytes) -> None:
        """Change the guest's memory."""
        start = address - MEMORY_ADDRESS
        self.memory[start : start + len(data)] = data

    # The protocol.

    def send(
        self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = VERSION
    ) -> None:
        """Send a request."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([HEADER.pack(request, flags, len(payload)) + payload], ancillary)

    def receive(self) -> tuple[int, bytes]:
        """The next reply: request and payload."""
        request, flags, size = HEADER.unpack(self._exactly(HEADER.size))
        assert flags & 0x7 == 0x5
        return request, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            got = self.socket.recv(size - len(data))
            if not got:
                raise ConnectionError("the card has hung up")
            data += got
        return data

    def ask(self, request: int) -> int:
        """Send a request whose reply is a number."""
        self.send(request)
        replied, payload = self.receive()
        assert replied == request
        return int.from_bytes(payload, "little")

    def set_memory(self, *regions: tuple[int, int, int, int]) -> None:
        """SET_MEM_TABLE with `(address, size, offset, fd)` of each region."""
        payload = struct.pack("<II", len(regions), 0)
        for address, size, offset, _ in regions:
            payload += struct.pack("<QQQQ", address, size, 0, offset)
        self.send(SET_MEM_TABLE, payload, tuple(fd for *_, fd in regions))

    def set_queue(self, queue: Queue) -> None:
        """Describe and enable a queue."""
        number = queue.number
        self.send(SET_VRING_NUM, struct.pack("<II", number, queue.entries))
        self.send(SET_VRING_BASE, struct.pack("<II", number, 0))
        self.send(
            SET_VRING_ADDR,
            struct.pack("<IIQQQQ", number, 0, queue.desc, queue.used, queue.avail, 0),
        )
        self.send(SET_VRING_ENABLE, struct.pack("<II", number, 1))

    def negotiate(self) -> None:
        """The handshake up to the memory table."""
        self.send(SET_OWNER)
        features = self.ask(GET_FEATURES)
        self.send(SET_FEATURES, struct.pack("<Q", features & (VERSION_1 | PROTOCOL_FEATURES)))
        protocol = self.ask(GET_PROTOCOL_FEATURES)
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol))
        self.send(SET_SLAVE_REQ_FD, fds=(self.calls_write,))

    def boot(self) -> Self:
        """The whole handshake, with the ten interrupt buffers that the kernel has."""
        self.negotiate()
        self.set_memory((MEMORY_ADDRESS, MEMORY_SIZE, 0, self.memory_fd))
        for index in range(INTERRUPT_BUFFERS):
            self.interrupts.set_descriptor(
                index, INTERRUPT_AREA + 64 * index, INTERRUPT_BUFFER_SIZE, WRITE, 0
            )
            self.interrupts.offer(index)
        for queue in (self.commands, self.interrupts):
            self.set_queue(queue)
        # The reply says that everything before it was done.
        self.ask(GET_FEATURES)
        return self

    def kick(self, queue: Queue, *, always: bool = False) -> None:
        """Tell the device, if it wants to be told."""
        if always or queue.wants_kick:
            self.send(VRING_KICK, struct.pack("<II", queue.number, 0))

    # Commands.

    def post(self, message: bytes, answer: int = 0, head: int = 0) -> None:
        """Offer one command, with room for an answer, without waiting for its end."""
        address = BUFFERS + head * 0x1000
        self.write(address, message)
        queue = self.commands
        if answer:
            self.write(address + 0x800, bytes(answer))
            queue.set_descriptor(head, address, len(message), NEXT, head + 1)
            queue.set_descriptor(head + 1, address + 0x800, answer, WRITE, 0)
        else:
            queue.set_descriptor(head, address, len(message), 0, 0)
        queue.offer(head)
        self.kick(queue)

    def wait_used(self, queue: Queue | None = None) -> tuple[int, int]:
        """Wait for the device to use a chain; the kernel spins here, too."""
        queue = queue or self.commands
        deadline = time.monotonic() + TIMEOUT
        while (used := queue.take()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("the card has not used the buffer")
            time.sleep(1e-5)
        return used

    def command(self, message: bytes, answer: int = 0) -> bytes:
        """Run one command; its answer."""
        self.post(message, answer)
        head, length = self.wait_used()
        assert head == 0
        return self.read(BUFFERS + 0x800, min(length, answer))

    def config_read(self, offset: int, size: int) -> int:
        """Configuration read, as the kernel sends it."""
        return int.from_bytes(
            self.command(COMMAND.pack(CFG_READ, 0, 0, size, offset), size), "little"
        )

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Configuration write: the kernel always sends eight bytes of data."""
        self.command(COMMAND.pack(CFG_WRITE, 0, 0, size, offset) + value.to_bytes(8, "little"))

    def mmio_read(self, bar: int, offset: int, size: int) -> int:
        """Memory read."""
        message = COMMAND.pack(MMIO_READ, bar, 0, size, offset)
        return int.from_bytes(self.command(message, size), "little")

    def mmio_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Memory write."""
        self.command(
            COMMAND.pack(MMIO_WRITE, bar, 0, size, offset) + value.to_bytes(size, "little")
        )

    def enable(self) -> None:
        """Enable memory access and bus mastering."""
        self.config_write(0x04, 2, 0x06)

    # Interrupts.

    def take_messages(self, *, give_back: bool = True) -> list[tuple[int, int, bytes]]:
        """The interrupts that have come since the last call, giving their buffers back."""
        found = []
        while (used := self.interrupts.take()) is not None:
            head, length = used
            data = self.read(INTERRUPT_AREA + 64 * head, length)
            op, _, _, size, address = COMMAND.unpack_from(data)
            found.append((op, address, data[COMMAND.size : COMMAND.size + size]))
            if give_back:
                self.interrupts.offer(head)
        self.messages += found
        if found and give_back:
            self.kick(self.interrupts)
        return found

    def wait_messages(self, count: int) -> list[tuple[int, int, bytes]]:
        """Wait until at least `count` interrupts have come in all; all of them."""
        deadline = time.monotonic() + TIMEOUT
        while len(self.messages) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{len(self.messages)} interrupts have come, not {count}")
            if select.select([self.calls], [], [], min(left, 0.05))[0]:
                os.read(self.calls, 1 << 16)
            self.take_messages()
        return self.messages

    def wait_hang_up(self) -> None:
        """Wait until the card ends the connection."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            pass
