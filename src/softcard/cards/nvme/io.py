"""Commands of the NVM command set (NVMe 1.4, chapter 6)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from softcard.backend.store import Buffer
from softcard.cards.nvme.ahead import Transfer
from softcard.cards.nvme.background import Background, Done
from softcard.cards.nvme.command import DEFERRED, ENTRY_SIZE, Command, Deferred, Handler, IoOpcode
from softcard.cards.nvme.engine import UNIT
from softcard.cards.nvme.health import Health
from softcard.cards.nvme.memory import HostMemory
from softcard.cards.nvme.namespace import Namespace, Namespaces
from softcard.cards.nvme.queues import SubmissionQueue
from softcard.cards.nvme.status import CommandError, Status, status_of_write_error

FORCE_UNIT_ACCESS = 1 << 30
DEALLOCATE = 1 << 25
DIRECTIVE_TYPE = 0xF << 20
DSM_DEALLOCATE = 1 << 2
MOVES_DATA = frozenset({IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE})
VERIFY_PIECE = 1 << 20
_RANGE = struct.Struct("<4xIQ")

Finisher = Callable[[Command, Callable[[], int] | None], Done]


class IoCommands:
    """Executes what the engine does not do itself.

    Args:
        memory: the host's memory.
        namespaces: what the blocks are in.
        health: counts what was moved.
        background: where slow work goes.
        finisher: makes what completes a command when work is done; see `Controller.finisher`.
        max_transfer: bytes that one command may move.

    Attributes:
        handlers: by opcode.
        write_through: the host has disabled the write cache: every write is flushed.
    """

    def __init__(
        self,
        memory: HostMemory,
        namespaces: Namespaces,
        health: Health,
        background: Background,
        finisher: Finisher,
        max_transfer: int,
    ) -> None:
        self.write_through = False
        self.handlers: dict[int, Handler] = {
            IoOpcode.FLUSH: self._flush,
            IoOpcode.WRITE: self._write,
            IoOpcode.READ: self._read,
            IoOpcode.COMPARE: self._compare,
            IoOpcode.WRITE_ZEROES: self._write_zeroes,
            IoOpcode.DATASET_MANAGEMENT: self._dataset_management,
            IoOpcode.VERIFY: self._verify,
        }
        self._memory = memory
        self._namespaces = namespaces
        self._health = health
        self._background = background
        self._finisher = finisher
        self._max_transfer = max_transfer

    def transfers(self, sq: SubmissionQueue) -> Iterator[Transfer]:
        """The data buffers of the commands that have come, as far as they can be told by now."""
        head = sq.head
        while head != sq.tail:
            command = Command(sq.entries, head * ENTRY_SIZE, sq.qid)
            head = (head + 1) % sq.size
            namespace = self._namespaces.ready.get(command.nsid)
            if namespace is None or command.opcode not in MOVES_DATA:
                continue
            length = command.blocks << namespace.shift
            if length <= self._max_transfer:
                reads = command.opcode != IoOpcode.READ
                yield Transfer(command.prp1, command.prp2, length, reads)

    # Commands that move data.

    def _read(self, command: Command) -> int | Deferred:
        namespace = self._transfer(command)
        if command.dw12 & FORCE_UNIT_ACCESS and namespace.store.slow:
            # Section 6.9: the blocks are on the medium before they are read from it.
            self._background.flush(
                self._finisher(command, lambda: self._read_blocks(namespace, command))
            )
            return DEFERRED
        return self._read_blocks(namespace, command)

    def _read_blocks(self, namespace: Namespace, command: Command) -> int:
        memory, length = self._memory, command.blocks << namespace.shift
        if memory.shared:
            views = memory.views(command.prp1, command.prp2, length)
            self._load(namespace, command, views)
        else:
            data = memoryview(bytearray(length))
            self._load(namespace, command, [data])
            memory.write(command.prp1, command.prp2, data)
        self._count_read(length)
        return 0

    def _write(self, command: Command) -> int | Deferred:
        namespace = self._transfer(command)
        self._check_writable(namespace)
        if command.dw12 & DIRECTIVE_TYPE:
            raise CommandError(Status.INVALID_FIELD)
        memory, length = self._memory, command.blocks << namespace.shift
        data: Sequence[Buffer]
        if memory.shared:
            data = memory.views(command.prp1, command.prp2, length)
        else:
            data = [memory.read(command.prp1, command.prp2, length)]
        try:
            namespace.store.write_from(command.slba << namespace.shift, data)
        except OSError as error:
            raise CommandError(status_of_write_error(error), lba=command.slba) from error
        self._health.writes += 1
        self._health.units_written += length // UNIT
        return self._durable(namespace, command)

    def _compare(self, command: Command) -> int:
        namespace = self._transfer(command)
        length = command.blocks << namespace.shift
        theirs = self._memory.read(command.prp1, command.prp2, length)
        ours = bytearray(length)
        self._load(namespace, command, [memoryview(ours)])
        self._count_read(length)
        if ours != theirs:
            raise CommandError(Status.COMPARE_FAILURE, lba=command.slba)
        return 0

    def _load(self, namespace: Namespace, command: Command, views: list[memoryview]) -> None:
        try:
            namespace.store.read_into(command.slba << namespace.shift, views)
        except OSError as error:
            raise self._read_error(command) from error

    # Commands that do not.

    def _flush(self, command: Command) -> int | Deferred:
        namespaces = self._namespaces.selected(command.nsid)
        if not any(n.store.slow for n in namespaces):
            return 0
        self._background.flush(self._finisher(command, None))
        return DEFERRED

    def _write_zeroes(self, command: Command) -> int | Deferred:
        namespace = self._blocks(command)
        self._check_writable(namespace)
        store, start = namespace.store, command.slba << namespace.shift
        length = command.blocks << namespace.shift
        clear = store.discard if command.dw12 & DEALLOCATE else store.write_zeroes
        flush = self._wants_flush(command)

        def work() -> None:
            clear(start, length)
            if flush:
                store.flush()

        return self._change(command, namespace, work)

    def _dataset_management(self, command: Command) -> int | Deferred:
        namespace = self._namespaces.accessible(command.nsid)
        count = (command.dw10 & 0xFF) + 1
        data = self._memory.read(command.prp1, command.prp2, count * _RANGE.size)
        if not command.dw11 & DSM_DEALLOCATE:
            return 0
        self._check_writable(namespace)
        ranges = [(start, blocks) for blocks, start in _RANGE.iter_unpack(data) if blocks]
        for start, blocks in ranges:
            namespace.check_range(start, blocks)
        store, shift = namespace.store, namespace.shift

        def work() -> None:
            for start, blocks in ranges:
                store.discard(start << shift, blocks << shift)

        return self._change(command, namespace, work)

    def _verify(self, command: Command) -> int | Deferred:
        namespace = self._blocks(command)
        store, start = namespace.store, command.slba << namespace.shift
        length = command.blocks << namespace.shift

        def work() -> None:
            scratch = memoryview(bytearray(min(length, VERIFY_PIECE)))
            for piece in range(start, start + length, VERIFY_PIECE):
                store.read_into(piece, [scratch[: start + length - piece]])

        def verified() -> int:
            self._count_read(length)
            return 0

        if not store.slow:
            work()
            return verified()
        finish = self._finisher(command, verified)
        self._background.submit(
            work,
            lambda error: finish(
                self._read_error(command) if isinstance(error, OSError) else error
            ),
        )
        return DEFERRED

    # What they share.

    def _blocks(self, command: Command) -> Namespace:
        """The namespace, of which the command's blocks are a part."""
        namespace = self._namespaces.accessible(command.nsid)
        namespace.check_range(command.slba, command.blocks)
        return namespace

    def _transfer(self, command: Command) -> Namespace:
        """The same for a command that moves the blocks."""
        namespace = self._namespaces.accessible(command.nsid)
        if command.blocks << namespace.shift > self._max_transfer:
            raise CommandError(Status.INVALID_FIELD)
        namespace.check_range(command.slba, command.blocks)
        return namespace

    @staticmethod
    def _check_writable(namespace: Namespace) -> None:
        if namespace.store.read_only:
            raise CommandError(Status.NAMESPACE_WRITE_PROTECTED)

    def _change(
        self, command: Command, namespace: Namespace, work: Callable[[], None]
    ) -> int | Deferred:
        """Change blocks, now or on the other thread."""
        if namespace.store.slow:
            self._background.submit(work, self._finisher(command, None))
            return DEFERRED
        work()
        return 0

    def _wants_flush(self, command: Command) -> bool:
        return self.write_through or bool(command.dw12 & FORCE_UNIT_ACCESS)

    def _durable(self, namespace: Namespace, command: Command) -> int | Deferred:
        """Complete a write, after a flush where the host wants one."""
        if not namespace.store.slow or not self._wants_flush(command):
            return 0
        self._background.flush(self._finisher(command, None))
        return DEFERRED

    def _count_read(self, length: int) -> None:
        self._health.reads += 1
        self._health.units_read += length // UNIT

    def _read_error(self, command: Command) -> CommandError:
        self._health.media_errors += 1
        return CommandError(Status.UNRECOVERED_READ_ERROR, lba=command.slba)
