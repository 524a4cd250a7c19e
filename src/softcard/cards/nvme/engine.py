"""The inner loop: I/O commands from a submission queue to its completion queue.

Everything here is done for each command, so it is short and flat, and works on memoryviews and
integers alone; it could be compiled. The common case, a page read from or written to memory, never
leaves the loop. All the rest is `execute`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from softcard.cards.nvme.command import ENTRY_SIZE, IoOpcode
from softcard.cards.nvme.health import Health
from softcard.cards.nvme.memory import HostMemory
from softcard.cards.nvme.namespace import Namespaces
from softcard.cards.nvme.queues import CID_SHIFT, PHASE, SQ_ID_SHIFT, SubmissionQueue

# Opcode, flags, command identifier, namespace; PRP 1; first block; dword 12.
_FIELDS = struct.Struct("<BBHI16xQ8xQI12x")
READ, WRITE = int(IoOpcode.READ), int(IoOpcode.WRITE)
UNIT = 512
BYTES_PER_TURN = 8 << 20
COMMAND_COST = 4096

Execute = Callable[[SubmissionQueue, int], int]


class Engine:
    """Runs submission queues.

    Args:
        memory: the host's memory.
        namespaces: what the blocks are in.
        health: counts what was moved.
        execute: executes and completes the command at an offset of a queue's entries, its head
            already behind it; returns how many bytes were moved.
    """

    def __init__(
        self, memory: HostMemory, namespaces: Namespaces, health: Health, execute: Execute
    ) -> None:
        self._memory = memory
        self._namespaces = namespaces
        self._health = health
        self._execute = execute

    def run(self, sq: SubmissionQueue) -> bool:
        """Run the queue until it is empty, its completion queue is full, or it had its turn.

        Returns:
            Whether there is more to do right away.
        """
        unpack, execute = _FIELDS.unpack_from, self._execute
        ready, pages = self._namespaces.ready, self._memory.pages
        page_size = self._memory.page_size
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
            if (opcode == READ or opcode == WRITE) and not flags and dw12 < 0x10000:  # noqa: SIM109
                page, namespace = pages.get(prp1), ready.get(nsid)
                if page is not None and namespace is not None:
                    data, shift = namespace.view, namespace.shift
                    count = dw12 + 1
                    if (
                        count << shift == page_size
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
            budget -= execute(sq, offset) + COMMAND_COST
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
