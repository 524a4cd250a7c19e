"""Submission and completion queues (NVMe 1.4, section 4.1): rings in the host's memory."""

from __future__ import annotations

from collections import deque

from softcard.cards.nvme.command import COMPLETION_SIZE, ENTRY_SIZE
from softcard.errors import DmaError
from softcard.model.dma import Dma

PHASE = 1 << 48
STATUS_SHIFT = 49
CID_SHIFT = 32
SQ_ID_SHIFT = 16
UNSEEN = -1
_NOTHING = memoryview(b"")


class SubmissionQueue:
    """A ring of 64-byte entries that the host writes.

    Attributes:
        qid: identifier.
        address: bus address of the ring.
        size: entries.
        cq: where its commands are completed.
        mapped: `entries` is the ring itself.
        entries: the ring, or, where the bus does not share its memory, a copy of what `fetch` got.
        head: next entry to be fetched.
        tail: the host's tail, as far as it is known.
        waiting: it stopped because its completion queue is full.
        seen_tail: what a doorbell in memory held when it was last looked at, or `UNSEEN`.
    """

    def __init__(self, dma: Dma, qid: int, address: int, size: int, cq: CompletionQueue) -> None:
        self.qid = qid
        self.address = address
        self.size = size
        self.cq = cq
        self.head = 0
        self.tail = 0
        self.waiting = False
        self.seen_tail = UNSEEN
        self._dma = dma
        self.entries, self.mapped = _ring(dma, address, size * ENTRY_SIZE)
        cq.users.add(self)

    @property
    def bytes(self) -> int:
        """Size of the ring."""
        return self.size * ENTRY_SIZE

    def forget(self) -> None:
        """The queue is gone: its memory is not used any more."""
        self.entries = _NOTHING
        self.cq.users.discard(self)

    def fetch(self) -> None:
        """Make the entries from head to tail available in `entries`.

        Raises:
            DmaError: the host no longer allows it.
        """
        if self.mapped:
            if not self._dma.allowed:
                raise DmaError(self.address, self.bytes, "bus mastering is off")
            return
        head, tail = self.head, self.tail
        if tail < head:
            self._copy(head, self.size)
            head = 0
        self._copy(head, tail)

    def _copy(self, first: int, end: int) -> None:
        start, stop = first * ENTRY_SIZE, end * ENTRY_SIZE
        if start < stop:
            self.entries[start:stop] = self._dma.read(self.address + start, stop - start)

    def move_tail(self, tail: int) -> bool:
        """The host's new tail; whether it is possible: inside the ring, and past no more entries
        than the ring can hold."""
        size = self.size
        if tail >= size or (self.tail - self.head) % size + (tail - self.tail) % size >= size:
            return False
        self.tail = tail
        return True


class CompletionQueue:
    """A ring of 16-byte entries that the controller writes.

    Attributes:
        qid: identifier.
        address: bus address of the ring.
        size: entries.
        vector: interrupt vector.
        interrupts: whether completions interrupt.
        mapped: `words` is the ring itself.
        words: the ring as 64-bit words, two for each entry; where the bus does not share its
            memory, a copy that `publish` sends.
        head: the host's head, as far as it is known.
        tail: next entry to be written.
        phase: `PHASE` or 0: what the host expects in the entry at the tail.
        users: the submission queues that complete here.
        fresh: there are completions that the host was not interrupted for.
        backlog: completions that wait for room: dword 0, and the second word without the phase.
        seen_head: what a doorbell in memory held when it was last looked at, or `UNSEEN`.
    """

    def __init__(
        self, dma: Dma, qid: int, address: int, size: int, vector: int, interrupts: bool
    ) -> None:
        self.qid = qid
        self.address = address
        self.size = size
        self.vector = vector
        self.interrupts = interrupts
        self.head = 0
        self.tail = 0
        self.phase = PHASE
        self.users: set[SubmissionQueue] = set()
        self.fresh = False
        self.backlog: deque[tuple[int, int]] = deque()
        self.seen_head = UNSEEN
        self._dma = dma
        self._published = 0
        memory, self.mapped = _ring(dma, address, size * COMPLETION_SIZE)
        self.words = memory.cast("Q")

    @property
    def bytes(self) -> int:
        """Size of the ring."""
        return self.size * COMPLETION_SIZE

    def forget(self) -> None:
        """The queue is gone: its memory is not used any more."""
        self.words = _NOTHING.cast("Q")

    @property
    def room(self) -> int:
        """Entries that can be written before the host takes some; 0 while others wait."""
        return 0 if self.backlog else (self.head - self.tail - 1) % self.size

    @property
    def empty(self) -> bool:
        """Whether the host has taken every completion."""
        return self.head == self.tail

    def post(self, sq: SubmissionQueue, cid: int, field: int, result: int) -> None:
        """Complete a command; the entry waits its turn while the queue is full.

        Args:
            sq: the queue it came from.
            cid: its identifier.
            field: status field without the phase bit; see `status_field`.
            result: dword 0.
        """
        high = sq.head | sq.qid << SQ_ID_SHIFT | cid << CID_SHIFT | field << STATUS_SHIFT
        self.backlog.append((result, high))
        self._drain()

    def advance(self, tail: int) -> None:
        """Entries were written up to `tail`, which is at most the end of the ring."""
        if tail == self.size:
            tail = 0
            self.phase ^= PHASE
        self.tail = tail
        self.fresh = True

    def _drain(self) -> None:
        backlog, words, size = self.backlog, self.words, self.size
        room = (self.head - self.tail - 1) % size
        while backlog and room:
            low, high = backlog.popleft()
            at = self.tail << 1
            words[at] = low
            # The word with the phase bit comes last: the host looks for it.
            words[at + 1] = high | self.phase
            self.tail += 1
            if self.tail == size:
                self.tail = 0
                self.phase ^= PHASE
            room -= 1
            self.fresh = True

    def publish(self) -> None:
        """Send new entries to the host where the bus does not share the ring.

        Raises:
            DmaError: the host no longer allows it.
        """
        if self.mapped:
            return
        writes: list[tuple[int, bytes]] = []
        while self._published != self.tail:
            at = self._published << 1
            writes += [
                (self.address + word * 8, self.words[word].to_bytes(8, "little"))
                for word in (at, at + 1)
            ]
            self._published = (self._published + 1) % self.size
        self._dma.write_many(writes)

    def move_head(self, head: int) -> bool:
        """The host's new head; whether it is possible: inside the ring, and not past the tail."""
        size = self.size
        if head >= size or (head - self.head) % size > (self.tail - self.head) % size:
            return False
        self.head = head
        self._drain()
        return True


def _ring(dma: Dma, address: int, length: int) -> tuple[memoryview, bool]:
    """A ring, and whether it is the memory itself, not a copy.

    Raises:
        DmaError: it is not, as a whole, memory that the host allows.
    """
    view = dma.view(address, length)
    if view is not None:
        return view, True
    return memoryview(bytearray(dma.read(address, length))), False
