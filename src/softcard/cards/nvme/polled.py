"""Doorbells in memory, which the card's loop polls."""

from __future__ import annotations

from typing import Protocol

from softcard.cards.nvme.engine import Engine
from softcard.cards.nvme.interrupts import QueueInterrupts
from softcard.cards.nvme.queues import UNSEEN, CompletionQueue, SubmissionQueue
from softcard.model.bar import Memory
from softcard.model.function import Function


class Queues(Protocol):
    """Whose doorbells these are."""

    sqs: dict[int, SubmissionQueue]

    def run(self, sq: SubmissionQueue) -> None:
        """Process what the host has submitted."""

    def take_head(self, cq: CompletionQueue, head: int) -> None:
        """The host took completions."""

    def invalid_doorbell(self) -> None:
        """The host stored an impossible value."""


class PolledDoorbells:
    """A tail and a head for each queue identifier, in turn, as 32-bit words in memory.

    Args:
        function: the card.
        controller: whose queues they belong to.
        engine: what looks at them, and runs a queue whose tail has moved.
        interrupts: says whether a level is to be released when completions are taken.

    Attributes:
        words: the memory.
        queues: the submission queues whose doorbells are looked at.
    """

    def __init__(
        self, function: Function, controller: Queues, engine: Engine, interrupts: QueueInterrupts
    ) -> None:
        self.words = memoryview(bytes(8)).cast("I")
        self.queues: tuple[SubmissionQueue, ...] = ()
        self._function = function
        self._controller = controller
        self._engine = engine
        self._interrupts = interrupts

    @property
    def wants_heads(self) -> bool:
        """Whether the heads of all queues matter; otherwise only those of full queues do."""
        return bool(self._interrupts.raised)

    def check(self, sq: SubmissionQueue) -> bool:
        """Run a queue whose tail has moved; whether it has."""
        tail = self.words[2 * sq.qid]
        if tail == sq.seen_tail:
            return False
        sq.seen_tail = tail
        self.check_head(sq.cq)
        if sq.move_tail(tail):
            self._controller.run(sq)
        else:
            self._controller.invalid_doorbell()
        return True

    def check_head(self, cq: CompletionQueue) -> bool:
        """Take the head of a completion queue if it has moved; whether it has."""
        head = self.words[2 * cq.qid + 1]
        if head == cq.seen_head:
            return False
        cq.seen_head = head
        self._controller.take_head(cq, head)
        return True

    # The loop's poller.

    def poll(self) -> bool:
        """See `Poller.poll`."""
        try:
            return self._function.dma.allowed and self._engine.poll(self)
        except Exception as error:
            self._function.endpoint.report("look at doorbells", error)
            return True

    def arm(self) -> bool:
        """See `Poller.arm`."""
        return self.poll()

    def disarm(self) -> None:
        """See `Poller.disarm`."""


class DoorbellPage(PolledDoorbells):
    """The doorbell registers of all queues, as plain memory that the driver may have mapped.

    Its stores then reach the card without a message, and wake nobody. Doorbells that arrive as
    messages are stored in the same memory. They read as what was written last.

    Args:
        function, controller, engine, interrupts: see `PolledDoorbells`.
        memory: of the BAR.
    """

    def __init__(
        self,
        function: Function,
        controller: Queues,
        engine: Engine,
        interrupts: QueueInterrupts,
        memory: Memory,
    ) -> None:
        super().__init__(function, controller, engine, interrupts)
        self._memory = memory

    def start(self) -> None:
        """The controller is enabled."""
        self._memory.view[:] = bytes(self._memory.size)
        self.words = self._memory.view.cast("I")
        self._function.poll(self, silent=self._function.dma.shares_bars)
        self.update()

    def stop(self) -> None:
        """The controller was reset."""
        if self.queues:
            self.queues = ()
            self._function.unpoll(self)

    def update(self) -> None:
        """Queues were created or deleted. The doorbells of a new one hold zero, whatever they held
        for an earlier one."""
        self.queues = tuple(self._controller.sqs.values())
        for sq in self.queues:
            if sq.seen_tail == UNSEEN:
                sq.seen_tail = self.words[2 * sq.qid] = 0
            if sq.cq.seen_head == UNSEEN:
                sq.cq.seen_head = self.words[2 * sq.cq.qid + 1] = 0
