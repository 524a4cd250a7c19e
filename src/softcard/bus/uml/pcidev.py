"""A function served as a virtio-pcidev device: its command queue, and the upstream link."""

from __future__ import annotations

import logging
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence

from softcard.bus.uml.interrupts import InterruptQueue
from softcard.bus.uml.memory import GuestMemory
from softcard.bus.uml.protocol import (
    CFG_READ,
    CFG_WRITE,
    COMMANDS,
    HEADER,
    INTX,
    MMIO_MEMSET,
    MMIO_READ,
    MMIO_WRITE,
    pack_msi,
)
from softcard.bus.uml.vring import DESC_F_NEXT, DESC_F_WRITE, Vring
from softcard.errors import DmaError
from softcard.model.atomic import apply_atomic
from softcard.model.link import AtomicOp, Downstream, LinkFeatures

log = logging.getLogger("softcard.bus.uml")

BAR_COUNT = 6
CONFIG_SIZE = 4096
MAX_BLOCK = 1 << 24
MAX_BAR = 1 << 28
COMMANDS_AT_ONCE = 64

FEATURES = LinkFeatures(bus="uml", max_functions=1, max_bar_size=MAX_BAR)


class PciDevice:
    """Turns virtqueue messages into calls of the link, and back: the upstream half of the link.

    Args:
        function: the downstream half.
        call: tells the guest that this queue has something for it.
        link_down: ends the connection, from any thread.
    """

    features = FEATURES

    def __init__(
        self, function: Downstream, call: Callable[[int], None], link_down: Callable[[], None]
    ) -> None:
        self.function = function
        self.link_down = link_down
        self.memory = GuestMemory()
        self.interrupts = InterruptQueue(self.memory, call)
        self._call = call
        self._commands: Vring | None = None
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
            self.interrupts.start(vring)

    def stop(self, queue: int) -> None:
        """The guest takes a queue back."""
        if queue == COMMANDS:
            self._commands = None
            self._backlog.clear()
        else:
            self.interrupts.stop()

    # Commands, on the card's thread.

    def poll(self) -> bool:
        """Serve commands that are there; not all of very many, so that others have their turn."""
        ring = self._commands
        if ring is None or not (ring.pending() or self._backlog):
            if self.interrupts.waiting:
                return self.interrupts.retry()
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
        if ring.wants_call():
            self._call(COMMANDS)
        if self.interrupts.waiting:
            self.interrupts.retry()
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
                    ring.put(head, size)
                    return
            if op == MMIO_WRITE and 0 < size <= 8 and bar < BAR_COUNT and length >= 16 + size:
                value = int.from_bytes(buffer[16 : 16 + size], "little")
                self._intx_again = self._intx
                self.function.write(bar, offset, size, value)
                serving.pop()
                ring.put(head, 0)
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

    # Interrupts, from any thread.

    def message(self, address: int, data: int) -> None:
        """See `Upstream.message`."""
        self.interrupts.send(pack_msi(address, data))

    def vector(self, vector: int) -> None:
        """Not used: the function keeps its own MSI-X table here."""
        raise NotImplementedError

    def intx(self, asserted: bool) -> None:
        """See `Upstream.intx`. The guest takes INTx as an edge: it is sent again after each
        access for as long as the line stays asserted."""
        self._intx = asserted
        self._intx_again = False
        if asserted:
            self.interrupts.send(INTX)

    def _repeat_intx(self) -> None:
        self._intx_again = False
        if self._intx:
            self.interrupts.send(INTX)

    # DMA, from any thread.

    def dma_read(self, address: int, length: int) -> bytes:
        """See `Upstream.dma_read`."""
        return bytes(self.memory.map(address, length))

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """See `Upstream.dma_write`."""
        self.memory.map(address, len(data))[:] = data

    def dma_read_many(self, segments: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Upstream.dma_read_many`."""
        return [self.dma_read(address, length) for address, length in segments]

    def dma_write_many(self, segments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """See `Upstream.dma_write_many`."""
        for address, data in segments:
            self.dma_write(address, data)

    def dma_move(self, segments: int, count: int) -> None:
        """Not used: `LinkFeatures.moves` is not set."""
        raise NotImplementedError

    def dma_map(self, address: int, length: int) -> memoryview:
        """See `Upstream.dma_map`."""
        return self.memory.map(address, length)

    def dma_file(self, address: int, length: int) -> tuple[int, int] | None:
        """See `Upstream.dma_file`."""
        return self.memory.file(address, length)

    def dma_atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        """See `Upstream.dma_atomic`."""
        return apply_atomic(self.memory.map(address, size), operation, operand, compare)
