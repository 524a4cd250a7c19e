"""Creation and deletion of I/O queues, and abort (NVMe 1.4, sections 5.1 and 5.3 to 5.6)."""

from __future__ import annotations

from softcard.cards.nvme.command import (
    COMPLETION_SIZE,
    ENTRY_SIZE,
    AdminOpcode,
    Command,
    Handler,
)
from softcard.cards.nvme.controller import ADMIN, Controller
from softcard.cards.nvme.queues import CompletionQueue, SubmissionQueue
from softcard.cards.nvme.registers import Configuration
from softcard.cards.nvme.status import CommandError, Status
from softcard.model.dma import Dma

CONTIGUOUS = 1 << 0
INTERRUPTS_ENABLED = 1 << 1
NOT_ABORTED = 1


class QueueCommands:
    """What the host does with queues.

    Args:
        controller: whose queues they are.
        dma: the host's memory.
        configuration: the controller configuration register.
        max_qid: the highest identifier of an I/O queue.
        max_entries: of one queue.

    Attributes:
        granted: identifiers that the host may use: of submission and completion queues. The
            number of queues feature changes them.
    """

    def __init__(
        self,
        controller: Controller,
        dma: Dma,
        configuration: Configuration,
        *,
        max_qid: int,
        max_entries: int,
    ) -> None:
        self.max_qid = max_qid
        self.granted = (max_qid, max_qid)
        self.handlers: dict[int, Handler] = {
            AdminOpcode.CREATE_CQ: self._create_cq,
            AdminOpcode.CREATE_SQ: self._create_sq,
            AdminOpcode.DELETE_CQ: self._delete_cq,
            AdminOpcode.DELETE_SQ: self._delete_sq,
            AdminOpcode.ABORT: self._abort,
        }
        self._controller = controller
        self._dma = dma
        self._configuration = configuration
        self._max_entries = max_entries

    def reset(self) -> None:
        """The controller was reset."""
        self.granted = (self.max_qid, self.max_qid)

    @property
    def any_created(self) -> bool:
        """Whether there are I/O queues."""
        controller = self._controller
        return len(controller.cqs) > 1 or len(controller.sqs) > 1

    def _create_cq(self, command: Command) -> int:
        qid, entries = self._new_queue(
            command, self._controller.cqs, self.granted[1], COMPLETION_SIZE
        )
        if command.dw11 >> 16 >= self._controller.interrupts.vectors:
            raise CommandError(Status.INVALID_INTERRUPT_VECTOR)
        self._controller.cqs[qid] = self._controller.engine.completion_queue(
            self._dma, qid, command.prp1, entries,
            vector=command.dw11 >> 16, interrupts=bool(command.dw11 & INTERRUPTS_ENABLED),
        )  # fmt: skip
        return 0

    def _create_sq(self, command: Command) -> int:
        qid, entries = self._new_queue(command, self._controller.sqs, self.granted[0], ENTRY_SIZE)
        cqid = command.dw11 >> 16
        if not 1 <= cqid <= self.granted[1]:
            raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
        cq = self._controller.cqs.get(cqid)
        if cq is None:
            raise CommandError(Status.COMPLETION_QUEUE_INVALID)
        sq = self._controller.engine.submission_queue(self._dma, qid, command.prp1, entries, cq)
        self._controller.sqs[qid] = sq
        self._controller.queues_changed()
        return 0

    def _new_queue(
        self, command: Command, existing: dict[int, SubmissionQueue] | dict[int, CompletionQueue],
        granted: int, entry_size: int,
    ) -> tuple[int, int]:  # fmt: skip
        """Identifier and entries of a queue to be created, checked."""
        qid, entries = command.dw10 & 0xFFFF, (command.dw10 >> 16) + 1
        if not 1 <= qid <= granted or qid in existing:
            raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
        configured = (
            self._configuration.io_sq_entry_size
            if entry_size == ENTRY_SIZE
            else self._configuration.io_cq_entry_size
        )
        if not 2 <= entries <= self._max_entries or 1 << configured != entry_size:
            raise CommandError(Status.INVALID_QUEUE_SIZE)
        if not command.dw11 & CONTIGUOUS:
            raise CommandError(Status.INVALID_FIELD)
        if command.prp1 & (self._controller.memory.page_size - 1):
            raise CommandError(Status.PRP_OFFSET_INVALID)
        return qid, entries

    def _delete_sq(self, command: Command) -> int:
        controller, qid = self._controller, command.dw10 & 0xFFFF
        sq = controller.sqs.get(qid)
        if sq is None or qid == ADMIN:
            raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
        controller.abort_pending(qid)
        del controller.sqs[qid]
        sq.forget()
        controller.settle(sq.cq)
        controller.queues_changed()
        return 0

    def _delete_cq(self, command: Command) -> int:
        controller, qid = self._controller, command.dw10 & 0xFFFF
        cq = controller.cqs.get(qid)
        if cq is None or qid == ADMIN:
            raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
        if cq.users:
            raise CommandError(Status.INVALID_QUEUE_DELETION)
        del controller.cqs[qid]
        cq.forget()
        controller.interrupts.taken(cq.vector)
        return 0

    def _abort(self, command: Command) -> int:
        """Only asynchronous event requests wait long enough to be aborted."""
        qid, cid = command.dw10 & 0xFFFF, command.dw10 >> 16
        if qid not in self._controller.sqs:
            raise CommandError(Status.INVALID_FIELD)
        if qid == ADMIN and self._controller.events.abort(cid):
            return 0
        return NOT_ABORTED
