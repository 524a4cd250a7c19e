"""A function served as a virtio-pcidev device: commands one way, interrupts the other.

Message, in the command queue from the guest, in the interrupt queue to it:

0    1     2          4        8             16
+----+-----+----------+--------+-------------+--------
| op | BAR | reserved | size 4 | address 8   | data
+----+-----+----------+--------+-------------+--------
"""

from __future__ import annotations

import enum
import logging
import struct
import threading
from collections import deque
from collections.abc import Callable

from softcard.bus.uml.memory import GuestMemory
from softcard.bus.uml.vring import DESC_F_NEXT, DESC_F_WRITE, Vring
from softcard.errors import DmaError
from softcard.model.atomic import apply_atomic
from softcard.model.link import AtomicOp, Downstream, LinkFeatures, all_ones

log = logging.getLogger("softcard.bus.uml")

HEADER = struct.Struct("<BBHIQ")
COMMANDS, INTERRUPTS = 0, 1
BAR_COUNT = 6
CONFIG_SIZE = 4096
MAX_BLOCK = 1 << 24
INTA = 1
# The guest has 20 buffers for posted writes; it waits for each further one until it is told that
# some are free.
WRITES_BEFORE_CALL = 12

FEATURES = LinkFeatures(bus="uml", max_functions=1, max_bar_size=MAX_BLOCK)


class Op(enum.IntEnum):
    """Operations (linux/virtio_pcidev.h)."""

    CFG_READ = 1
    CFG_WRITE = 2
    MMIO_READ = 3
    MMIO_WRITE = 4
    MMIO_MEMSET = 5
    INT = 6
    MSI = 7
    PME = 8


CFG_READ, CFG_WRITE, MMIO_READ, MMIO_WRITE, MMIO_MEMSET = list(Op)[:5]


class PciDevice:
    """Turns virtqueue messages into calls of the link, and back: the upstream half of the link.

    Args:
        function: the downstream half.
        call: tells the guest that these queues have something for it.
    """

    features = FEATURES

    def __init__(self, function: Downstream, call: Callable[[tuple[int, ...]], None]) -> None:
        self.function = function
        self.memory = GuestMemory()
        self._call = call
        self._commands: Vring | None = None
        self._interrupts: Vring | None = None
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._writes_done = 0
        self._intx = False
        self._intx_again = False
        # One entry while a read is with the card: whoever takes it out answers the guest.
        self._open_read: list[tuple[int, int, int]] = []
        self.reads = 0

    # Set-up by vhost-user.

    def start(self, queue: int, vring: Vring) -> None:
        """A queue is ready."""
        if queue == COMMANDS:
            self._commands = vring
        else:
            with self._lock:
                vring.notify(False)
                self._interrupts = vring
                self._send_waiting()

    def stop(self, queue: int) -> None:
        """The guest takes a queue back."""
        if queue == COMMANDS:
            self._commands = None
        else:
            with self._lock:
                self._interrupts = None
                self._waiting.clear()

    # Commands, on the card's thread.

    def poll(self) -> bool:
        """Serve every command that is there."""
        ring = self._commands
        if ring is None or not ring.pending():
            if self._waiting:
                return self._retry_waiting()
            if self._intx_again:
                self._repeat_intx()
                return True
            return False
        while ring.pending():
            self._serve(ring, ring.take())
            if self._commands is not ring:
                break
        if self._waiting:
            self._retry_waiting()
        return True

    def arm(self) -> bool:
        """Ask for kicks; True when something has come meanwhile."""
        ring = self._commands
        if ring is not None:
            return ring.notify_unless_pending()
        return False

    def disarm(self) -> None:
        """No kicks while polling."""
        if self._commands is not None:
            self._commands.notify(False)

    def _serve(self, ring: Vring, head: int) -> None:
        address, length, flags, following = ring.descriptor(head)
        try:
            buffer = self.memory.map(address, length)
            op, bar, _, size, offset = HEADER.unpack_from(buffer)
            if op == MMIO_READ and size <= 8 and bar < BAR_COUNT and flags & DESC_F_NEXT:
                answer_at, answer_length, answer_flags, _ = ring.descriptor(following)
                if answer_flags & DESC_F_WRITE and size and answer_length >= size:
                    self._read(ring, head, bar, offset, size, answer_at)
                    return
            if op == MMIO_WRITE and 0 < size <= 8 and bar < BAR_COUNT and length >= 16 + size:
                value = int.from_bytes(buffer[16 : 16 + size], "little")
                self._intx_again = self._intx
                self.function.write(bar, offset, size, value)
                ring.put(head, 0)
                self._count_write()
                return
            self._serve_rare(ring, head, op, bar, size, offset)
        except (DmaError, struct.error, ValueError) as error:
            # The guest's own fault: it gets its buffers back, unanswered.
            log.warning("malformed command from the guest: %s", error)
            ring.put(head, 0)

    def _read(
        self, ring: Vring, head: int, bar: int, offset: int, size: int, answer_at: int
    ) -> None:
        answer = self.memory.map(answer_at, size)
        self._intx_again = self._intx
        self.reads += 1
        self._open_read.append((head, answer_at, size))
        value = self.function.read(bar, offset, size)
        if self._claim_read():
            answer[:] = value.to_bytes(size, "little")
            self._writes_done = 0
            ring.put(head, size)

    def _claim_read(self) -> tuple[int, int, int] | None:
        try:
            return self._open_read.pop()
        except IndexError:
            return None

    def time_out_read(self) -> bool:
        """Answer the read that the card has not answered with all-ones, from another thread."""
        ring = self._commands
        claimed = self._claim_read() if ring is not None else None
        if ring is None or claimed is None:
            return False
        head, answer_at, size = claimed
        self.memory.map(answer_at, size)[:] = b"\xff" * size
        ring.put(head, size)
        return True

    @property
    def read_open(self) -> bool:
        """Whether a read is with the card."""
        return bool(self._open_read)

    def _serve_rare(
        self, ring: Vring, head: int, op: int, bar: int, size: int, offset: int
    ) -> None:
        """Configuration accesses, blocks and everything malformed."""
        chain = ring.chain(head)
        sent = b"".join(bytes(self.memory.map(a, n)) for a, n, written in chain if not written)
        data = sent[HEADER.size :]
        target = next(((a, n) for a, n, written in chain if written), None)
        function = self.function
        answer: bytes | None = None
        if op == CFG_READ and size in (1, 2, 4, 8):
            answer = function.config_read(offset, size).to_bytes(size, "little")
        elif op == CFG_WRITE and size in (1, 2, 4, 8) and len(data) >= size:
            function.config_write(offset, size, int.from_bytes(data[:size], "little"))
        elif bar >= BAR_COUNT or size > MAX_BLOCK:
            answer = all_ones(min(size, 8)).to_bytes(min(size, 8), "little")
        elif op == MMIO_READ:
            answer = function.read_block(bar, offset, size)
        elif op == MMIO_WRITE and len(data) >= size:
            function.write_block(bar, offset, data[:size])
        elif op == MMIO_MEMSET and data:
            function.write_block(bar, offset, data[:1] * size)
        else:
            raise ValueError(f"operation {op} of {size} bytes with {len(data)} bytes of data")
        if answer is not None and target is not None:
            answer = answer[: target[1]]
            self.memory.map(target[0], len(answer))[:] = answer
            ring.put(head, len(answer))
        else:
            ring.put(head, 0)
            self._count_write()

    def _count_write(self) -> None:
        """The guest takes buffers of finished writes back when it is called, or when it reads."""
        self._writes_done += 1
        if self._writes_done >= WRITES_BEFORE_CALL:
            self._writes_done = 0
            self._call((COMMANDS,))

    # Interrupts, from any thread.

    def message(self, address: int, data: int) -> None:
        """See `Upstream.message`."""
        self._interrupt(HEADER.pack(Op.MSI, 0, 0, 4, address) + data.to_bytes(4, "little"))

    def vector(self, vector: int) -> None:
        """Not used: the function keeps its own MSI-X table here."""
        raise NotImplementedError

    def intx(self, asserted: bool) -> None:
        """See `Upstream.intx`. The guest takes INTx as an edge: it is sent again after each
        access for as long as the line stays asserted."""
        self._intx = asserted
        self._intx_again = False
        if asserted:
            self._interrupt(HEADER.pack(Op.INT, 0, 0, 0, INTA))

    def _repeat_intx(self) -> None:
        self._intx_again = False
        if self._intx:
            self._interrupt(HEADER.pack(Op.INT, 0, 0, 0, INTA))

    def _interrupt(self, message: bytes) -> None:
        with self._lock:
            self._waiting.append(message)
            self._send_waiting()

    def _send_waiting(self) -> bool:
        """Put waiting messages into the buffers that the guest has free; it has only ten."""
        ring = self._interrupts
        sent = False
        while ring is not None and self._waiting:
            if not ring.pending() and not ring.notify_unless_pending():
                break
            head = ring.take()
            address, length, _, _ = ring.descriptor(head)
            message = self._waiting[0]
            try:
                self.memory.map(address, min(length, len(message)))[:] = message[:length]
            except DmaError as error:
                log.warning("the guest offered no memory for an interrupt: %s", error)
                ring.put(head, 0)
                continue
            self._waiting.popleft()
            ring.put(head, len(message))
            sent = True
        if ring is not None and not self._waiting:
            ring.notify(False)
        if sent:
            both = self._writes_done > WRITES_BEFORE_CALL // 2
            if both:
                self._writes_done = 0
            self._call((COMMANDS, INTERRUPTS) if both else (INTERRUPTS,))
        return sent

    def _retry_waiting(self) -> bool:
        with self._lock:
            return self._send_waiting()

    # DMA, from any thread.

    def dma_read(self, address: int, length: int) -> bytes:
        """See `Upstream.dma_read`."""
        return bytes(self.memory.map(address, length))

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """See `Upstream.dma_write`."""
        self.memory.map(address, len(data))[:] = data

    def dma_map(self, address: int, length: int) -> memoryview:
        """See `Upstream.dma_map`."""
        return self.memory.map(address, length)

    def dma_atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        """See `Upstream.dma_atomic`."""
        return apply_atomic(self.memory.map(address, size), operation, operand, compare)
