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
from softcard.model.link import AtomicOp, Downstream, LinkFeatures

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
COMMANDS_AT_ONCE = 64

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
        # One entry while a command is with the card.
        self._serving: list[int] = []
        self.served = 0
        self._lock_stuck = threading.Lock()
        self._stuck = False
        self._late_write = False
        self._backlog: deque[int] = deque()

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
            self._backlog.clear()
        else:
            with self._lock:
                self._interrupts = None
                self._waiting.clear()

    # Commands, on the card's thread.

    def poll(self) -> bool:
        """Serve commands that are there; not all of very many, so that others have their turn."""
        ring = self._commands
        if ring is None or not (ring.pending() or self._backlog):
            if self._waiting:
                return self._retry_waiting()
            if self._intx_again:
                self._repeat_intx()
                return True
            return False
        for _ in range(COMMANDS_AT_ONCE):
            if self._backlog:
                self._serve(ring, self._backlog.popleft())
            elif ring.pending():
                self._serve(ring, ring.take())
            else:
                break
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
        serving = self._serving
        self.served += 1
        serving.append(head)
        try:
            buffer = self.memory.map(address, length)
            op, bar, _, size, offset = HEADER.unpack_from(buffer)
            if op == MMIO_READ and size <= 8 and bar < BAR_COUNT and flags & DESC_F_NEXT:
                answer_at, answer_length, answer_flags, _ = ring.descriptor(following)
                if answer_flags & DESC_F_WRITE and size and answer_length >= size:
                    answer = self.memory.map(answer_at, size)
                    self._intx_again = self._intx
                    value = self.function.read(bar, offset, size)
                    serving.pop()
                    answer[:] = value.to_bytes(size, "little")
                    self._writes_done = 0
                    ring.put(head, size)
                    return
            if op == MMIO_WRITE and 0 < size <= 8 and bar < BAR_COUNT and length >= 16 + size:
                value = int.from_bytes(buffer[16 : 16 + size], "little")
                self._intx_again = self._intx
                self.function.write(bar, offset, size, value)
                serving.pop()
                ring.put(head, 0)
                self._count_write()
                return
            self._serve_rare(ring, head, op, bar, size, offset)
        except Exception as error:
            self._end_badly(ring, head, error)

    def _serve_rare(
        self, ring: Vring, head: int, op: int, bar: int, size: int, offset: int
    ) -> None:
        """Configuration accesses, blocks and everything malformed."""
        chain = ring.chain(head)
        length = sum(n for _, n, written in chain if not written)
        if length > HEADER.size + MAX_BLOCK:
            raise ValueError(f"operation {op} with {length} bytes")
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
            answer = b"\xff" * min(size, 8)
        elif op == MMIO_READ:
            answer = function.read_block(bar, offset, size)
        elif op == MMIO_WRITE and len(data) >= size:
            function.write_block(bar, offset, data[:size])
        elif op == MMIO_MEMSET and data:
            function.write_block(bar, offset, data[:1] * size)
        else:
            raise ValueError(f"operation {op} of {size} bytes with {len(data)} bytes of data")
        self._serving.pop()
        if answer is not None and target is not None:
            answer = answer[: target[1]]
            self.memory.map(target[0], len(answer))[:] = answer
            ring.put(head, len(answer))
        else:
            ring.put(head, 0)
            self._count_write()

    # The completion time-out, on another thread. Whoever takes the command that is being served
    # out of `_serving` owns the queue: the card's thread nearly always, the other one when the
    # card does not return. It gives the queue back when the card does at last.

    @property
    def progress(self) -> int | None:
        """A number that changes with each command; None while the card is not in one."""
        return self.served if self._serving or self._stuck else None

    def time_out(self) -> int:
        """Answer every read that waits with all-ones; how many there were.

        Writes behind a command that the card does not finish keep waiting, in order.
        """
        ring = self._commands
        with self._lock_stuck:
            answered = 0
            if ring is None:
                return 0
            if not self._stuck:
                if not self._reads_wait(ring):
                    return 0
                try:
                    head = self._serving.pop()
                except IndexError:
                    return 0
                self._stuck = True
                self._late_write = not self._answer_all_ones(ring, head)
                answered += not self._late_write
            while ring.pending():
                head = ring.take()
                if self._answer_all_ones(ring, head):
                    answered += 1
                else:
                    self._backlog.append(head)
            return answered

    def _end_badly(self, ring: Vring, head: int, error: Exception) -> None:
        """The command was given up on, is the guest's own fault, or something on the link failed:
        the guest gets its buffers back in any case."""
        try:
            self._serving.pop()
        except IndexError:
            with self._lock_stuck:
                if self._stuck:
                    self._stuck = False
                    if self._late_write:
                        ring.put(head, 0)
                    return
        if isinstance(error, DmaError | struct.error | ValueError):
            log.warning("malformed command from the guest: %s", error)
        else:
            log.error("a command of the guest has failed", exc_info=error)
        if not self._answer_all_ones(ring, head):
            ring.put(head, 0)

    def _reads_wait(self, ring: Vring) -> bool:
        heads = [*self._serving, *ring.offered()]
        return any(written for head in heads for _, _, written in ring.chain(head))

    def _answer_all_ones(self, ring: Vring, head: int) -> bool:
        """Whether this command is a read; then it is answered."""
        target = next(((a, n) for a, n, written in ring.chain(head) if written), None)
        if target is None:
            return False
        length = min(target[1], MAX_BLOCK)
        try:
            self.memory.map(target[0], length)[:] = b"\xff" * length
        except DmaError:
            length = 0
        ring.put(head, length)
        return True

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
