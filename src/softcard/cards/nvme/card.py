"""The NVMe card: its configuration space, registers and options (NVMe 1.4, chapters 2 and 3)."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from softcard.backend.file import FileStore
from softcard.backend.ram import RamStore
from softcard.backend.store import BlockStore
from softcard.cards.nvme.background import Background
from softcard.cards.nvme.controller import Controller, Inspector
from softcard.cards.nvme.engine import Engine
from softcard.cards.nvme.engines import ENGINES
from softcard.cards.nvme.features import Features
from softcard.cards.nvme.firmware import Firmware
from softcard.cards.nvme.health import CriticalWarning
from softcard.cards.nvme.identify import Identify, Identity
from softcard.cards.nvme.logs import Logs
from softcard.cards.nvme.namespace import (
    GRANULE,
    MAX_NAMESPACES,
    Namespaces,
    share_out,
)
from softcard.cards.nvme.namespace_commands import NamespaceCommands
from softcard.cards.nvme.queue_commands import QueueCommands
from softcard.cards.nvme.registers import (
    DOORBELL_STRIDE,
    DOORBELLS,
    DOORBELLS_SIZE,
    MAX_VECTORS,
    PAGE_SIZE_CODE_MAX,
    PAGE_SIZE_MIN,
    PENDING_BITS,
    SHUTDOWN_COMPLETE,
    SHUTDOWN_NONE,
    SHUTDOWN_OCCURRING,
    VECTOR_TABLE,
    Registers,
)
from softcard.cards.nvme.saved import SavedState, describe
from softcard.errors import DmaError, UsageError
from softcard.model.bar import Memory
from softcard.model.card import Card
from softcard.model.link import ResetKind
from softcard.model.options import Size
from softcard.pcie.capabilities import (
    AdvancedErrorReporting,
    DeviceSerialNumber,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
)

DEFAULT_SIZE = Size(1 << 30)
DEFAULT_TRANSFER = Size(1 << 20)
MAX_QUEUES = MAX_VECTORS - 1
MAX_QUEUE_ENTRIES = 1 << 16
MAX_TRANSFER = 1 << 26
MAX_MSI_VECTORS = 32
FIRMWARE = "1.0"
SERIAL_LENGTH, MODEL_LENGTH = 20, 40


class Nvme(Card):
    """An NVMe 1.4 solid-state disk.

    Its blocks are in memory, or in a file that outlives the card: sparse, with holes punched where
    the driver discards blocks, and safe where it flushes. A file belongs to one card at a time.

    Args:
        size: bytes of the whole disk; 1G, or the size of the file where there is one.
        file: keep the blocks in this file; it is made where there is none. Without it they are in
            memory and end with the card.
        read_only: do not write to the file; the disk is write-protected.
        block_size: bytes of a logical block. The driver may format the disk with the other size.
        namespaces: share the disk out among so many namespaces alike. The driver may delete them
            and create others.
        queues: pairs of I/O queues that the driver may use, 1 to 255, each with an interrupt.
        queue_entries: entries of the largest queue, 2 to 65,536.
        max_transfer: bytes that one command may move, a power of two from 4K to 64M.
        serial: serial number, at most 20 characters; made from the file's path, or random, where
            it is left out.
        model: model number, at most 40 characters.
        shadow_doorbells: let the driver keep its doorbells in memory, which the card polls.
        polled_doorbells: let the driver's side map the doorbell registers, where the bus can:
            they are then plain memory, which the card polls. It looks a thousand times in a second
            even while nothing happens. There are no shadow doorbells then.

    Attributes:
        engine: the class of what runs I/O queues: the compiled one, where it was built.
        controller: the queues, counters and events behind the registers.

    Raises:
        UsageError: an option or the file is not usable.
    """

    vendor_id, device_id = 0x1DED, 0x4E56
    subsystem_vendor_id, subsystem_id = 0x1DED, 0x0001
    class_code = 0x010802
    interrupt_pin = 1

    bar0 = Registers

    engine: ClassVar[type[Engine]] = ENGINES[0]

    power_management = PowerManagement()
    express = PciExpress()
    error_reporting = AdvancedErrorReporting()

    def __init__(
        self,
        *,
        size: Size | None = None,
        file: Path | None = None,
        read_only: bool = False,
        block_size: Literal[512, 4096] = 512,
        namespaces: int = 1,
        queues: int = 8,
        queue_entries: int = 1024,
        max_transfer: Size = DEFAULT_TRANSFER,
        serial: str | None = None,
        model: str = "softcard NVMe",
        shadow_doorbells: bool = True,
        polled_doorbells: bool = False,
    ) -> None:
        _check(block_size in (512, 4096), f"blocks of {block_size} bytes", "512 or 4096")
        _check(1 <= namespaces <= MAX_NAMESPACES, f"{namespaces} namespaces", "1 to 32")
        _check(1 <= queues <= MAX_QUEUES, f"{queues} pairs of queues", f"1 to {MAX_QUEUES}")
        _check(
            2 <= queue_entries <= MAX_QUEUE_ENTRIES, f"queues of {queue_entries} entries",
            f"2 to {MAX_QUEUE_ENTRIES}",
        )  # fmt: skip
        _check(
            PAGE_SIZE_MIN <= max_transfer <= MAX_TRANSFER and not max_transfer & (max_transfer - 1),
            f"a largest transfer of {max_transfer:d} bytes", "a power of two from 4K to 64M",
        )  # fmt: skip
        if serial is None:
            serial = _serial(file)
        _check(_fits(serial, SERIAL_LENGTH), f"serial number {serial!r}", "1 to 20 ASCII letters")
        _check(_fits(model, MODEL_LENGTH), f"model number {model!r}", "1 to 40 ASCII letters")
        identity = Identity(self.vendor_id, self.subsystem_vendor_id, serial, model, FIRMWARE)
        self.message_interrupts = MsiX(
            vectors=queues + 1, table=(0, VECTOR_TABLE), pba=(0, PENDING_BITS)
        )
        self.few_message_interrupts = Msi(
            vectors=min(1 << queues.bit_length(), MAX_MSI_VECTORS), masking=True
        )
        self.serial_number = DeviceSerialNumber(identity.unique.int >> 64)
        super().__init__()
        self._store = _open(file, size, block_size, read_only)
        self._state = None if file is None else SavedState(file)
        try:
            self._build(
                identity, queues, queue_entries, max_transfer,
                shadow_doorbells=shadow_doorbells, polled_doorbells=polled_doorbells,
            )  # fmt: skip
            self._enter_namespaces(namespaces, block_size, identity)
        except BaseException:
            # Whoever catches it keeps the card alive, and its file locked.
            self._store.close()
            raise

    def _build(
        self,
        identity: Identity,
        queues: int,
        queue_entries: int,
        max_transfer: int,
        *,
        shadow_doorbells: bool,
        polled_doorbells: bool,
    ) -> None:
        """Make the controller and everything that answers admin commands."""
        registers = self.bars[0]
        assert isinstance(registers, Registers)
        self._registers = registers
        capabilities = registers.capabilities
        capabilities.max_queue_entries = queue_entries - 1
        capabilities.reset = capabilities.value
        page: Memory | None = None
        if polled_doorbells:
            (page,) = registers.add_memory([Memory(DOORBELLS, DOORBELLS_SIZE)])
        self._background = Background(self, self._store)
        self._namespaces = Namespaces(self._store)
        self.controller = controller = Controller(
            self,
            self._namespaces,
            self._background,
            max_transfer=max_transfer,
            max_qid=queues,
            engine=self.engine,
            shadow_doorbells=shadow_doorbells,
            doorbell_page=page,
            fatal=self._fatal,
        )
        self._queues = QueueCommands(
            controller, self.dma, registers.configuration,
            max_qid=queues, max_entries=queue_entries,
        )  # fmt: skip
        self._features = Features(controller, self._queues, self._saving)
        self._firmware = Firmware(controller.memory, max_transfer)
        identify = Identify(
            identity, self._namespaces, controller.memory,
            max_transfer=max_transfer, doorbell_buffers=lambda: controller.shadow.supported,
        )  # fmt: skip
        logs = Logs(
            controller.memory, controller.errors, controller.events, controller.health,
            firmware=FIRMWARE, max_transfer=max_transfer,
            admin_opcodes=lambda: set(controller.admin_handlers),
        )  # fmt: skip
        for family in (
            self._queues, self._features, self._firmware, identify, logs, controller.events,
            controller.shadow, NamespaceCommands(controller, self._features, self._saving),
        ):  # fmt: skip
            controller.admin_handlers.update(family.handlers)
        if page is None:
            doorbells = controller.doorbells
            registers.file.add_region("doorbells", DOORBELLS, DOORBELLS_SIZE, doorbells)
            for index in range(2 * (queues + 1)):
                at = DOORBELLS + index * DOORBELL_STRIDE
                registers.file.answer_writes(at, DOORBELL_STRIDE, doorbells.writer(index))
        self._was_enabled = False
        self._was_notified = SHUTDOWN_NONE
        self._used_since_shutdown = False

    def _enter_namespaces(self, count: int, block_size: int, identity: Identity) -> None:
        if self._state is not None and self._state.load(self._namespaces, self._features.load):
            return
        if self._store.size < count * max(block_size, GRANULE):
            raise UsageError(
                f"{self._store.size:d} bytes are too few for {count} namespaces with blocks of "
                f"{block_size}: choose a larger size"
            )
        share_out(self._namespaces, count, block_size, identity.unique)

    def _saving(self) -> Callable[[], object] | None:
        """The work that saves what the host has changed; None where nothing is to be saved."""
        if self._state is None:
            return None
        features = {str(key): value for key, value in self._features.saved.items()}
        return partial(self._state.save, describe(self._namespaces, features))

    # For whoever owns the card.

    @property
    def temperature(self) -> int:
        """Composite temperature in kelvin; the driver is told when it passes its thresholds."""
        return self.controller.health.temperature

    @temperature.setter
    def temperature(self, kelvin: int) -> None:
        self.controller.health.temperature = kelvin
        self._features.check_health()

    @property
    def warnings(self) -> CriticalWarning:
        """Critical warnings to be reported besides those that the temperature gives."""
        return self.controller.health.forced

    @warnings.setter
    def warnings(self, warnings: CriticalWarning) -> None:
        self.controller.health.forced = warnings
        self._features.check_health()

    @property
    def inspector(self) -> Inspector | None:
        """What is called with each command before it is executed, for traces and faults: it
        returns None to let the command pass, or the status to complete it with at once."""
        return self.controller.inspector

    @inspector.setter
    def inspector(self, inspector: Inspector | None) -> None:
        self.controller.inspector = inspector

    def close(self) -> None:
        """Give the file back, for another card; the card must not be plugged in any more."""
        self._background.stop()
        self._store.close()

    # Registers (section 3.1).

    @Registers.interrupt_mask_set.on_write
    def mask_interrupts(self, value: int) -> None:
        """INTMS: ones mask vectors."""
        self.controller.interrupts.set_mask(value)
        self._show_mask()

    @Registers.interrupt_mask_clear.on_write
    def unmask_interrupts(self, value: int) -> None:
        """INTMC: ones unmask them."""
        self.controller.interrupts.clear_mask(value)
        self._show_mask()

    def _show_mask(self) -> None:
        mask = self.controller.interrupts.mask
        self._registers.interrupt_mask_set.value = mask
        self._registers.interrupt_mask_clear.value = mask

    @Registers.configuration.on_write
    def configure(self, _value: int) -> None:
        """CC: enable, disable, shutdown notification."""
        configuration = self._registers.configuration
        enable, notified = bool(configuration.enable), configuration.shutdown
        if enable and not self._was_enabled:
            self._was_enabled = True
            # What a reset left running on the store must not meet what the host does next.
            self._background.when_idle(self._enable)
        elif not enable and self._was_enabled:
            self._reset_controller()
        if notified != self._was_notified:
            self._was_notified = notified
            self._shut_down(bool(notified))

    def _enable(self) -> None:
        """Section 7.6.1, from the host's step 5 on."""
        registers = self._registers
        configuration, queues = registers.configuration, registers.admin_queue_attributes
        if not configuration.enable or registers.status.ready:
            return
        page_size = PAGE_SIZE_MIN << configuration.page_size
        sq, cq = registers.admin_sq_address.value, registers.admin_cq_address.value
        if (
            configuration.page_size > PAGE_SIZE_CODE_MAX
            or configuration.command_set
            or configuration.arbitration
            or not queues.sq_size
            or not queues.cq_size
            or (sq | cq) & (page_size - 1)
        ):
            self._fatal()
            return
        try:
            self.controller.start(page_size, (sq, queues.sq_size + 1), (cq, queues.cq_size + 1))
        except DmaError:
            self.controller.stop()
            self._fatal()
            return
        registers.status.ready = 1
        self._used_since_shutdown = True

    def _fatal(self) -> None:
        self._registers.status.fatal = 1

    def _reset_controller(self) -> None:
        """What every reset of the controller does (section 7.3.2); AQA, ASQ and ACQ stay."""
        self._was_enabled = False
        self.controller.stop()
        self._queues.reset()
        self._features.reset()
        self._firmware.reset()
        self._registers.status.value = 0
        self._show_mask()

    def _shut_down(self, notified: bool) -> None:
        """Section 7.6.2: what was written must survive the loss of power."""
        status = self._registers.status
        if not notified:
            status.shutdown = SHUTDOWN_NONE
        elif not self._store.slow:
            status.shutdown = SHUTDOWN_COMPLETE
            self._used_since_shutdown = False
        else:
            status.shutdown = SHUTDOWN_OCCURRING
            self._background.flush(self._shutdown_flushed)

    def _shutdown_flushed(self, error: BaseException | None) -> None:
        status = self._registers.status
        if status.shutdown != SHUTDOWN_OCCURRING:
            return
        status.shutdown = SHUTDOWN_COMPLETE
        self._used_since_shutdown = False
        if error is not None:
            self._fatal()
            self.endpoint.report("flush before shutdown", error)

    # What the bus does.

    def on_reset(self, kind: ResetKind) -> None:
        """Every PCI reset resets the controller; power-on opens the file again."""
        if kind is ResetKind.POWER_ON:
            self._lose_power()
            self.controller.health.power_on()
        self._was_notified = SHUTDOWN_NONE
        self._reset_controller()
        if kind is ResetKind.POWER_ON:
            self._store.open()

    def on_memory_removed(self, address: int, size: int) -> None:
        """Forget views of it."""
        self.controller.memory_removed(address, size)

    def on_unplug(self) -> None:
        """Power has gone: the file is given back, and its data are there for the next time."""
        self._lose_power()
        self._reset_controller()
        self._background.stop()
        self._store.close()

    def _lose_power(self) -> None:
        health = self.controller.health
        if not health.powered:
            return
        health.unsafe_shutdowns += self._used_since_shutdown
        self._used_since_shutdown = False
        health.power_off()


def _open(file: Path | None, size: Size | None, block_size: int, read_only: bool) -> BlockStore:
    if file is not None:
        if size is None and not (file.exists() and file.stat().st_size):
            size = DEFAULT_SIZE
        return FileStore(file, size, block_size=block_size, read_only=read_only)
    if read_only:
        raise UsageError("read_only is for a disk with a file: name the file, or leave it out")
    size = DEFAULT_SIZE if size is None else size
    _check(size % block_size == 0, f"a disk of {size:d} bytes", f"a multiple of {block_size}")
    return RamStore(size)


def _serial(file: Path | None) -> str:
    """The same for the same file, so that a driver finds the same disk again."""
    if file is None:
        return f"SC{secrets.token_hex(8).upper()}"
    return f"SC{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16].upper()}"


def _fits(text: str, length: int) -> bool:
    return 1 <= len(text) <= length and text.isascii() and text.isprintable()


def _check(good: bool, what: str, choices: str) -> None:
    if not good:
        raise UsageError(f"{what}: choose {choices}")
