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
    SQ_ID_SHIFT,
    CompletionQueue,
    SubmissionQueue,
)

# Opcode and flags, command identifier, namespace; PRP 1; first block; dword 12.
_FIELDS = struct.Struct("<HHI16xQ8xQI12x")
READ, WRITE = int(IoOpcode.READ), int(IoOpcode.WRITE)
UNIT = 512
BYTES_PER_TURN = 8 << 20
COMMAND_COST = 4096
# Of the commands whose completions are posted together.
BYTES_TOGETHER = 64 << 10


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
        moves: it moves the data of commands by `Dma.move` where the bus can.
        running: a queue is being run.
        inspecting: every command is shown to `Executor.inspect` first.
    """

    submission_queue: ClassVar[type[SubmissionQueue]] = SubmissionQueue
    completion_queue: ClassVar[type[CompletionQueue]] = CompletionQueue
    moves: ClassVar[bool] = False

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

    def ring(
        self,
        noted: list[tuple[int, int]],
        sqs: dict[int, SubmissionQueue],
        cqs: dict[int, CompletionQueue],
    ) -> list[tuple[int, int]]:
        """Take the host's new tails and heads, and run the queues, as far as nothing about it is
        out of the ordinary.

        Args:
            noted: numbers and values of doorbells.
            sqs, cqs: the queues by identifier.

        Returns:
            What is left to the controller.
        """
        return noted

    def run(self, sq: SubmissionQueue) -> bool:
        """Run the queue until it is empty, its completion queue is full, or it had its turn.

        Returns:
            Whether there is more to do right away.
        """
        executor, cq = self._executor, sq.cq
        budget = BYTES_PER_TURN
        while sq.head != sq.tail and cq.room and budget > 0:
            if not self.inspecting:
                moved = self._run_plain(sq, budget)
                if moved:
                    budget -= moved
                    continue
            offset = sq.head * ENTRY_SIZE
            sq.head = (sq.head + 1) % sq.size
            budget -= COMMAND_COST
            if not (self.inspecting and executor.inspect(sq, offset)):
                budget -= executor.execute(sq, offset)
        return sq.head != sq.tail and cq.room > 0

    def _run_plain(self, sq: SubmissionQueue, budget: int) -> int:
        """Run commands as long as each moves a page to or from memory; how many bytes they moved.

        There is room for a completion, and it stops where a ring ends.
        """
        cq, head, page_size = sq.cq, sq.head, self._memory.page_size
        ready, pages = self._namespaces.ready, self._memory.pages
        size, words = sq.size, cq.words
        posts: list[int] = []
        others = sq.qid << SQ_ID_SHIFT | cq.phase
        end = head + min(
            (sq.tail if sq.tail > head else size) - head,
            cq.room,
            cq.size - cq.tail,
            -(-min(budget, BYTES_TOGETHER) // page_size),
        )
        known = reads = writes = 0
        for kind, cid, nsid, prp1, slba, blocks in _FIELDS.iter_unpack(
            sq.entries[head * ENTRY_SIZE : end * ENTRY_SIZE]
        ):
            if nsid != known:
                namespace = ready.get(nsid)
                if namespace is None or namespace.view is None:
                    break
                known, data, shift = nsid, namespace.view, namespace.shift
                plain = (page_size >> shift) - 1 if page_size <= self._max_transfer else -1
                last = namespace.blocks - 1 - plain
            page = pages.get(prp1)
            if page is None or blocks != plain or slba > last:
                break
            start = slba << shift
            if kind == READ:
                page[:] = data[start : start + page_size]
                reads += 1
            elif kind == WRITE:
                data[start : start + page_size] = page
                writes += 1
            else:
                break
            head += 1
            if head == size:
                head = 0
            posts.append(head | cid << CID_SHIFT | others)
        moved = (reads + writes) * page_size
        if moved:
            sq.head = head
            tail = cq.tail + len(posts)
            at = 2 * tail
            # From the last to the first: the host sees the first when all are there. The word with
            # the phase bit comes last: that is what the host looks for.
            for post in reversed(posts):
                at -= 2
                words[at] = 0
                words[at + 1] = post
            cq.advance(tail)
            health = self._health
            health.reads += reads
            health.writes += writes
            health.units_read += reads * page_size // UNIT
            health.units_written += writes * page_size // UNIT
        return moved
