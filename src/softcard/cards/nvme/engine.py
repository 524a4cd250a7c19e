"""The inner loop: I/O commands from a submission queue to its completion queue.

Everything here is done for each command, so it is short and flat, and works on memoryviews and
integers alone. The common case, a page read from or written to memory, never leaves the loop. All
the rest is the controller's. `compiled.pyx` has the same for where it was built.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Protocol

from softcard.cards.nvme.command import ENTRY_SIZE, IoOpcode
from softcard.cards.nvme.health import Health
from softcard.cards.nvme.memory import HostMemory
from softcard.cards.nvme.namespace import Namespaces
from softcard.cards.nvme.queues import (
    CID_SHIFT,
    PHASE,
    SQ_ID_SHIFT,
    CompletionQueue,
    SubmissionQueue,
)

# Opcode, flags, command identifier, namespace; PRP 1; first block; dword 12.
_FIELDS = struct.Struct("<BBHI16xQ8xQI12x")
READ, WRITE = int(IoOpcode.READ), int(IoOpcode.WRITE)
UNIT = 512
BYTES_PER_TURN = 8 << 20
COMMAND_COST = 4096


class Executor(Protocol):
    """What the engine leaves to the controller."""

    def inspect(self, sq: SubmissionQueue, offset: int) -> bool:
        """Show a command to who asked for it; whether it is completed thereby."""

    def execute(self, sq: SubmissionQueue, offset: int) -> int:
        """Execute and complete the command at an offset of a queue's entries, the queue's head
        already behind it; returns how many bytes were moved."""

    def ran(self, sq: SubmissionQueue, more: bool) -> None:
        """A queue was run: show the host what was posted; `more` is what `Engine.run` returned."""


class Doorbells(Protocol):
    """Doorbells in memory; see `PolledDoorbells`."""

    words: memoryview
    queues: tuple[SubmissionQueue, ...]

    @property
    def wants_heads(self) -> bool:
        """Whether the heads of all queues matter."""

    def check(self, sq: SubmissionQueue) -> bool:
        """Run a queue whose tail has moved; whether it has."""

    def check_head(self, cq: CompletionQueue) -> bool:
        """Take the head of a completion queue if it has moved; whether it has."""


class Engine:
    """Runs submission queues.

    Args:
        memory: the host's memory.
        namespaces: what the blocks are in.
        health: counts what was moved.
        executor: does what the engine does not do itself.
        max_transfer: bytes that one command may move.

    Attributes:
        submission_queue, completion_queue: the classes of the queues that it runs.
        running: a queue is being run.
        inspecting: every command is shown to `Executor.inspect` first.
    """

    submission_queue: ClassVar[type[SubmissionQueue]] = SubmissionQueue
    completion_queue: ClassVar[type[CompletionQueue]] = CompletionQueue

    running: bool
    inspecting: bool

    def __init__(
        self,
        memory: HostMemory,
        namespaces: Namespaces,
        health: Health,
        executor: Executor,
        *,
        max_transfer: int,
    ) -> None:
        self.running = False
        self.inspecting = False
        self._memory = memory
        self._namespaces = namespaces
        self._health = health
        self._executor = executor
        self._max_transfer = max_transfer

    def forget(self, address: int, size: int) -> None:
        """The bus takes this memory away: nothing of it is used when this returns."""

    def forget_all(self) -> None:
        """No memory of the host is used from now on, until there are queues again."""

    def poll(self, doorbells: Doorbells) -> bool:
        """Look at doorbells in memory, and run the queues that they tell of; whether any did."""
        words, queues, heads = doorbells.words, doorbells.queues, doorbells.wants_heads
        busy = False
        for sq in queues:
            if words[2 * sq.qid] != sq.seen_tail:
                busy = doorbells.check(sq) or busy
                if doorbells.queues is not queues:
                    break
            elif (heads or sq.waiting) and doorbells.check_head(sq.cq):
                busy = True
        return busy

    def run(self, sq: SubmissionQueue) -> bool:
        """Run the queue until it is empty, its completion queue is full, or it had its turn.

        Returns:
            Whether there is more to do right away.
        """
        unpack, executor = _FIELDS.unpack_from, self._executor
        ready, pages = self._namespaces.ready, self._memory.pages
        page_size = self._memory.page_size
        whole = page_size if page_size <= self._max_transfer else 0
        inspecting = self.inspecting
        cq = sq.cq
        entries, size, tail, head = sq.entries, sq.size, sq.tail, sq.head
        words, cq_size = cq.words, cq.size
        room, at, phase = cq.room, cq.tail, cq.phase
        sq_id = sq.qid << SQ_ID_SHIFT
        reads = writes = posted = 0
        budget = BYTES_PER_TURN
        while head != tail and room and budget > 0:
            offset = head * ENTRY_SIZE
            opcode, flags, cid, nsid, prp1, slba, dw12 = unpack(entries, offset)
            head += 1
            if head == size:
                head = 0
            if inspecting:
                sq.head, cq.tail, cq.phase = head, at, phase
                completed = executor.inspect(sq, offset)
                room, at, phase = cq.room, cq.tail, cq.phase
                if completed:
                    continue
            if (opcode == READ or opcode == WRITE) and not flags and dw12 < 0x10000:  # noqa: SIM109
                page, namespace = pages.get(prp1), ready.get(nsid)
                if page is not None and namespace is not None:
                    data, shift = namespace.view, namespace.shift
                    count = dw12 + 1
                    if (
                        count << shift == whole
                        and slba + count <= namespace.blocks
                        and data is not None
                    ):
                        start = slba << shift
                        if opcode == READ:
                            page[:] = data[start : start + page_size]
                            reads += 1
                        else:
                            data[start : start + page_size] = page
                            writes += 1
                        words[at << 1] = 0
                        # The word with the phase bit comes last: the host looks for it.
                        words[(at << 1) + 1] = head | sq_id | cid << CID_SHIFT | phase
                        at += 1
                        if at == cq_size:
                            at = 0
                            phase ^= PHASE
                        room -= 1
                        posted = 1
                        budget -= page_size
                        continue
            sq.head, cq.tail, cq.phase = head, at, phase
            budget -= executor.execute(sq, offset) + COMMAND_COST
            room, at, phase = cq.room, cq.tail, cq.phase
        sq.head, cq.tail, cq.phase = head, at, phase
        if posted:
            cq.fresh = True
            health, units = self._health, page_size // UNIT
            health.reads += reads
            health.writes += writes
            health.units_read += reads * units
            health.units_written += writes * units
        return head != tail and room > 0
