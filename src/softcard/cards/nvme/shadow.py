"""Doorbells in the host's memory (NVMe 1.4, sections 5.7 and 7.13).

The host stores its tails and heads in one page of its memory, and writes a doorbell register only
where the value passes the index that the controller has stored in another. While the card's loop
polls, those indexes lie behind the host, and it writes no registers at all; before the loop sleeps,
they are put right ahead of it.
"""

from __future__ import annotations

import platform
import threading

from softcard.cards.nvme.command import AdminOpcode, Command, Handler
from softcard.cards.nvme.engine import Engine
from softcard.cards.nvme.interrupts import QueueInterrupts
from softcard.cards.nvme.memory import HostMemory
from softcard.cards.nvme.polled import PolledDoorbells, Queues
from softcard.cards.nvme.queues import UNSEEN
from softcard.cards.nvme.status import CommandError, Status
from softcard.model.function import Function

# The protocol needs the store of an index to be seen before a tail is loaded. On these processors
# taking a lock has that effect; Python offers nothing that promises it on the others.
STRONG_MACHINES = frozenset({"x86_64", "AMD64", "i686", "i386"})
PAIR_SIZE = 8


class ShadowDoorbells(PolledDoorbells):
    """Both pages of memory, and the poller that reads one of them.

    The admin queues have no part in it: their doorbells are registers always.

    Args:
        function, controller, engine, interrupts: see `PolledDoorbells`.
        memory: the host's memory.
        max_qid: the highest identifier of a queue.
        allowed: whether the host may use them at all.

    Attributes:
        active: the host has given the memory.
        memory: address and length of what is used of the pages.
    """

    def __init__(
        self,
        function: Function,
        controller: Queues,
        engine: Engine,
        interrupts: QueueInterrupts,
        memory: HostMemory,
        *,
        max_qid: int,
        allowed: bool,
    ) -> None:
        super().__init__(function, controller, engine, interrupts)
        self.active = False
        self.memory: list[tuple[int, int]] = []
        self.handlers: dict[int, Handler] = {AdminOpcode.DOORBELL_BUFFER_CONFIG: self._configure}
        self._memory = memory
        self._length = (max_qid + 1) * PAIR_SIZE
        self._allowed = allowed and platform.machine() in STRONG_MACHINES
        self._fence = threading.Lock()
        self._forget()

    @property
    def supported(self) -> bool:
        """Whether the command is offered: the bus must share such memory, and the driver use
        messages. INTx needs the head doorbells, which tell when to release the line."""
        dma = self._function.dma
        return self._allowed and (dma.shared or dma.moves) and self._interrupts.messages

    def _forget(self) -> None:
        self.words = self._events = memoryview(bytearray(self._length)).cast("I")
        self.memory = []
        self.queues = ()

    def _configure(self, command: Command) -> int:
        if not self.supported:
            raise CommandError(Status.INVALID_OPCODE)
        if (command.prp1 | command.prp2) & (self._memory.page_size - 1):
            raise CommandError(Status.INVALID_FIELD)
        words, events = (
            self._function.dma.map(address, self._length).cast("I")
            for address in (command.prp1, command.prp2)
        )
        self.stop()
        self.words, self._events = words, events
        self.memory = [(command.prp1, self._length), (command.prp2, self._length)]
        self.active = True
        self.update()
        self.arm()
        self._function.poll(self)
        return 0

    def stop(self) -> None:
        """The controller was reset: the memory is no longer used."""
        if self.active:
            self.active = False
            self._function.unpoll(self)
            self._forget()

    def update(self) -> None:
        """Queues were created or deleted. What the memory holds for a new one is from before its
        time, and means nothing until it changes."""
        if not self.active:
            return
        self.queues = tuple(sq for qid, sq in self._controller.sqs.items() if qid)
        for sq in self.queues:
            if sq.seen_tail == UNSEEN:
                sq.seen_tail = self.words[2 * sq.qid]
            if sq.cq.seen_head == UNSEEN:
                sq.cq.seen_head = self.words[2 * sq.cq.qid + 1]
                # Heads are looked at when they are needed: no register is to be written for them.
                self._events[2 * sq.cq.qid + 1] = (sq.cq.head - 1) % sq.cq.size

    def arm(self) -> bool:
        """See `Poller.arm`."""
        if not self._function.dma.allowed:
            return False
        events = self._events
        heads = self.wants_heads
        for sq in self.queues:
            events[2 * sq.qid] = sq.seen_tail
            if heads or sq.waiting:
                events[2 * sq.cq.qid + 1] = sq.cq.seen_head
        with self._fence:
            pass
        return self.poll()

    def disarm(self) -> None:
        """See `Poller.disarm`."""
        if not self._function.dma.allowed:
            return
        events = self._events
        for sq in self.queues:
            events[2 * sq.qid] = (sq.tail - 1) % sq.size
