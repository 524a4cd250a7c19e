"""The controller: its queues, and the way of every command through it (NVMe 1.4, chapter 4)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from softcard.cards.nvme.background import Background, Done
from softcard.cards.nvme.command import DEFERRED, ENTRY_SIZE, Command, Handler
from softcard.cards.nvme.doorbells import Doorbells
from softcard.cards.nvme.engine import UNIT, Engine
from softcard.cards.nvme.events import ErrorLog, Event, Events
from softcard.cards.nvme.health import Health
from softcard.cards.nvme.interrupts import QueueInterrupts
from softcard.cards.nvme.io import IoCommands
from softcard.cards.nvme.memory import HostMemory
from softcard.cards.nvme.namespace import Namespaces
from softcard.cards.nvme.polled import DoorbellPage
from softcard.cards.nvme.queues import CompletionQueue, SubmissionQueue
from softcard.cards.nvme.shadow import ShadowDoorbells
from softcard.cards.nvme.status import (
    REQUESTED,
    CommandError,
    Status,
    status_field,
    status_of_write_error,
)
from softcard.errors import DmaError
from softcard.model.bar import Memory
from softcard.model.function import Function

log = logging.getLogger("softcard.card.nvme")

ADMIN = 0
# Fused operations, and data pointers that are not PRPs.
UNSUPPORTED_FLAGS = 0xC3

Inspector = Callable[[Command], Status | None]
"""Sees a command before it is executed: None lets it pass, a status completes it at once."""


class Controller:
    """Runs queues from doorbell to completion; what admin commands do is in their own files.

    Args:
        function: the card.
        namespaces: what the blocks are in.
        background: where slow work goes.
        max_transfer: bytes that one command may move.
        max_qid: the highest identifier of a queue.
        engine: what runs I/O queues.
        shadow_doorbells: whether the host may keep doorbells in its memory.
        doorbell_page: the doorbell registers, where they are plain memory.
        fatal: called when the controller can no longer work: the host took away a queue's memory.

    Attributes:
        enabled: commands are processed.
        sqs, cqs: the queues by identifier.
        admin_handlers: by opcode; see `admin`.
        doorbells, errors, events, health, interrupts, io, memory, page, shadow: parts of it, see
            their files.
    """

    def __init__(
        self,
        function: Function,
        namespaces: Namespaces,
        background: Background,
        *,
        max_transfer: int,
        max_qid: int,
        engine: type[Engine],
        shadow_doorbells: bool,
        doorbell_page: Memory | None,
        fatal: Callable[[], object],
    ) -> None:
        self.enabled = False
        self.sqs: dict[int, SubmissionQueue] = {}
        self.cqs: dict[int, CompletionQueue] = {}
        self.admin_handlers: dict[int, Handler] = {}
        self.namespaces = namespaces
        self.background = background
        self.memory = HostMemory(function.dma)
        self.health = Health()
        self.errors = ErrorLog()
        self.events = Events(self.complete, self.fail)
        self.interrupts = QueueInterrupts(function, self.cqs)
        self.doorbells = Doorbells(function, self._doorbells_rung)
        self.engine = engine(self.memory, namespaces, self.health, self, max_transfer=max_transfer)
        self.page = (
            None
            if doorbell_page is None
            else DoorbellPage(function, self, self.engine, self.interrupts, doorbell_page)
        )
        self.shadow = ShadowDoorbells(
            function, self, self.engine, self.interrupts, self.memory,
            max_qid=max_qid, allowed=shadow_doorbells and self.page is None,
        )  # fmt: skip
        self.io = IoCommands(
            self.memory, namespaces, self.health, background, self.finisher, max_transfer
        )
        self._function = function
        self._fatal = fatal
        self._inspector: Inspector | None = None
        self._pending: dict[tuple[int, int], Command] = {}
        # In the order in which they were rung.
        self._rung: dict[SubmissionQueue, None] = {}

    # Reset and enable.

    def start(self, page_size: int, sq: tuple[int, int], cq: tuple[int, int]) -> None:
        """Process commands from now on.

        Args:
            page_size: bytes of a memory page.
            sq, cq: address and entries of the admin queues.

        Raises:
            DmaError: they are not memory that the host allows.
        """
        dma = self._function.dma
        self.memory.start(page_size)
        engine = self.engine
        self.cqs[ADMIN] = engine.completion_queue(dma, ADMIN, *cq, vector=0, interrupts=True)
        self.sqs[ADMIN] = engine.submission_queue(dma, ADMIN, *sq, self.cqs[ADMIN])
        self.enabled = True
        if self.page is not None:
            self.page.start()

    def stop(self) -> None:
        """Reset: forget queues, commands, events and the host's memory (section 7.3.2)."""
        self.enabled = False
        self.doorbells.forget()
        self.shadow.stop()
        if self.page is not None:
            self.page.stop()
        self.interrupts.reset()
        for sq in self.sqs.values():
            sq.forget()
        for cq in self.cqs.values():
            cq.forget()
        self.sqs.clear()
        self.cqs.clear()
        self.events.reset()
        self.memory.drop()
        self.engine.forget_all()
        self._pending.clear()
        self._rung.clear()

    def queues_changed(self) -> None:
        """A submission queue was created or deleted."""
        self.shadow.update()
        if self.page is not None:
            self.page.update()

    def memory_removed(self, address: int, size: int) -> None:
        """The bus takes memory away."""
        self.memory.removed(address, size)
        self.engine.forget(address, size)
        in_use = list(self.shadow.memory)
        in_use += [(sq.address, sq.bytes) for sq in self.sqs.values()]
        in_use += [(cq.address, cq.bytes) for cq in self.cqs.values()]
        for start, length in in_use:
            if start < address + size and address < start + length:
                log.info("the host took away memory of a queue that is in use")
                self._fail_fatally()
                return

    def _fail_fatally(self) -> None:
        self.stop()
        self._fatal()

    # Doorbells (sections 3.1.24 and 3.1.25).

    def _doorbells_rung(self, noted: list[tuple[int, int]]) -> None:
        """The host wrote doorbells, whose numbers and values these are."""
        if not (self.shadow.active or self.interrupts.raised) and self._function.dma.allowed:
            noted = self.engine.ring(noted, self.sqs, self.cqs)
        # Heads first: they make room.
        for index, value in noted:
            if index & 1 and self.enabled:
                self._head_written(index >> 1, value)
        for index, value in noted:
            if not index & 1 and self.enabled:
                self._tail_written(index >> 1, value)
        self._run_rung()

    def _tail_written(self, qid: int, tail: int) -> None:
        sq = self.sqs.get(qid)
        if sq is None:
            self._doorbell_error(Event.INVALID_DOORBELL_REGISTER)
        elif self.shadow.active and qid:
            # The value may be older than what the host has stored in memory meanwhile.
            self.shadow.check(sq)
        elif sq.move_tail(tail):
            self._rung[sq] = None
        else:
            self._doorbell_error(Event.INVALID_DOORBELL_VALUE)

    def _head_written(self, qid: int, head: int) -> None:
        cq = self.cqs.get(qid)
        if cq is None:
            self._doorbell_error(Event.INVALID_DOORBELL_REGISTER)
        elif self.shadow.active and qid:
            self.shadow.check_head(cq)
        else:
            self.take_head(cq, head)

    def take_head(self, cq: CompletionQueue, head: int) -> None:
        """The host's new head of a completion queue: what waited for room goes on."""
        if not self._may_write():
            return
        if not cq.move_head(head):
            self._doorbell_error(Event.INVALID_DOORBELL_VALUE)
            return
        if self.interrupts.raised:
            self.interrupts.taken(cq.vector)
        if cq.fresh:
            self.settle(cq)
        for sq in cq.users:
            if sq.waiting and cq.room:
                self._ring(sq)

    def invalid_doorbell(self) -> None:
        """A value that the host stored in memory is impossible."""
        self._doorbell_error(Event.INVALID_DOORBELL_VALUE)

    def _doorbell_error(self, event: Event) -> None:
        self.errors.record()
        self.events.report(event)

    # Running a queue.

    def _ring(self, sq: SubmissionQueue) -> None:
        """Run a queue when everything that the bus has at hand was looked at."""
        if not self._rung:
            self._function.defer(self._run_rung)
        self._rung[sq] = None

    def _run_rung(self) -> None:
        rung, self._rung = self._rung, {}
        for sq in rung:
            if self.sqs.get(sq.qid) is sq and sq.head != sq.tail:
                self.run(sq)

    def run(self, sq: SubmissionQueue) -> None:
        """Process what the host has submitted, as far as there is room for the completions."""
        started = time.perf_counter()
        self.engine.running = True
        try:
            sq.fetch()
            if sq.qid and not self.memory.shared and not (self.engine.moves and self.memory.moves):
                self.memory.ahead.prepare(self.io.transfers(sq))
            more = self.engine.run(sq) if sq.qid else self._run_admin(sq)
        except DmaError as error:
            log.warning("the queue %d is no memory of the host any more: %s", sq.qid, error)
            self._fail_fatally()
            return
        finally:
            self.engine.running = False
            self.memory.ahead.forget()
            self.health.busy += time.perf_counter() - started
        self.ran(sq, more)

    def ran(self, sq: SubmissionQueue, more: bool) -> None:
        """See `Executor.ran`."""
        sq.waiting = sq.head != sq.tail
        self.settle(sq.cq)
        if sq.qid and ADMIN in self.cqs:
            self.settle(self.cqs[ADMIN])
        if more and self.enabled:
            self._ring(sq)

    def _run_admin(self, sq: SubmissionQueue) -> bool:
        while sq.head != sq.tail and sq.cq.room:
            offset = sq.head * ENTRY_SIZE
            sq.head = (sq.head + 1) % sq.size
            if not (self.engine.inspecting and self.inspect(sq, offset)):
                self._execute(sq, Command(sq.entries, offset, ADMIN), self.admin_handlers)
        return False

    def inspect(self, sq: SubmissionQueue, offset: int) -> bool:
        """See `Executor.inspect`."""
        command = Command(sq.entries, offset, sq.qid)
        try:
            status = None if self._inspector is None else self._inspector(command)
        except Exception as error:
            self.fail(command, self._command_error(error))
            return True
        if status is None:
            return False
        if status is Status.SUCCESS:
            sq.cq.post(sq, command.cid, 0, 0)
        else:
            self.fail(command, CommandError(status))
        return True

    @property
    def inspector(self) -> Inspector | None:
        """What is called with each command before it is executed."""
        return self._inspector

    @inspector.setter
    def inspector(self, inspector: Inspector | None) -> None:
        self._inspector = inspector
        self.engine.inspecting = inspector is not None

    def execute(self, sq: SubmissionQueue, offset: int) -> int:
        """See `Executor.execute`."""
        health = self.health
        before = health.units_read + health.units_written
        self._execute(sq, Command(sq.entries, offset, sq.qid), self.io.handlers)
        return (health.units_read + health.units_written - before) * UNIT

    def _execute(self, sq: SubmissionQueue, command: Command, handlers: dict[int, Handler]) -> None:
        handler = handlers.get(command.opcode)
        try:
            if handler is None:
                raise CommandError(Status.INVALID_OPCODE)
            if command.flags & UNSUPPORTED_FLAGS:
                raise CommandError(Status.INVALID_FIELD)
            result = handler(command)
            if result is not DEFERRED:
                sq.cq.post(sq, command.cid, 0, result)
        except Exception as error:
            self.fail(command, self._command_error(error))

    # Completing commands.

    def complete(self, command: Command, result: int) -> None:
        """Complete a deferred command; nothing happens when its queue is gone."""
        self._post(command, 0, result)

    def fail(self, command: Command, error: CommandError) -> None:
        """Complete a command with an error, which the error log remembers unless the host asked
        for it."""
        field = status_field(error.status)
        if error.status not in REQUESTED:
            self.errors.record(
                field,
                queue=command.queue,
                command=command.cid,
                namespace=command.nsid,
                lba=error.lba,
            )
        log.info(
            "command %#04x of queue %d failed: %s",
            command.opcode, command.queue, error.status.name,
        )  # fmt: skip
        self._post(command, field, error.result)

    def _post(self, command: Command, field: int, result: int) -> None:
        sq = self.sqs.get(command.queue)
        if sq is None or not self._may_write():
            return
        sq.cq.post(sq, command.cid, field, result)
        if not self.engine.running:
            self.settle(sq.cq)

    def _may_write(self) -> bool:
        """Whether the host's memory may be written; a controller that has to and may not fails."""
        if self._function.dma.allowed:
            return True
        self._fail_fatally()
        return False

    def settle(self, cq: CompletionQueue) -> None:
        """Show the host what was posted, and interrupt it, once for all of it."""
        if not cq.fresh:
            return
        cq.fresh = False
        if not cq.mapped:
            try:
                cq.publish()
            except DmaError:
                self._fail_fatally()
                return
        self.interrupts.notify(cq)

    # Deferred commands.

    def finisher(self, command: Command, then: Callable[[], int] | None = None) -> Done:
        """What completes a deferred command when work in the background is done.

        Args:
            command: the command; it can be aborted by the deletion of its queue until then.
            then: called after successful work; returns dword 0, or raises what handlers raise.

        Raises:
            CommandError: another deferred command of the queue has the same identifier.
        """
        key = (command.queue, command.cid)
        if key in self._pending:
            raise CommandError(Status.COMMAND_ID_CONFLICT)
        self._pending[key] = command

        def done(error: BaseException | None) -> None:
            if self._pending.get(key) is not command:
                return
            del self._pending[key]
            try:
                if error is not None:
                    raise error
                self.complete(command, then() if then is not None else 0)
            except Exception as problem:
                self.fail(command, self._command_error(problem))

        return done

    def abort_pending(self, qid: int) -> None:
        """The submission queue is being deleted: complete its deferred commands (section 5.6)."""
        for key, command in list(self._pending.items()):
            if command.queue == qid:
                del self._pending[key]
                self.fail(command, CommandError(Status.ABORTED_SQ_DELETION))

    def _command_error(self, error: Exception) -> CommandError:
        """What the host is told of an exception; our own mistakes are reported as such."""
        match error:
            case CommandError():
                return error
            case DmaError():
                return CommandError(Status.DATA_TRANSFER_ERROR)
            case OSError():
                log.warning("access to the store failed: %s", error)
                return CommandError(status_of_write_error(error))
            case _:
                self._function.endpoint.report("command", error)
                return CommandError(Status.INTERNAL_ERROR)
