"""Get Log Page (NVMe 1.4, section 5.14)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from softcard.cards.nvme.command import (
    ALL_NAMESPACES,
    AdminOpcode,
    Command,
    Handler,
    IoOpcode,
)
from softcard.cards.nvme.events import LOG_ENTRIES, ErrorLog, Events
from softcard.cards.nvme.health import (
    CRITICAL_TEMPERATURE,
    SPARE_THRESHOLD,
    WARNING_TEMPERATURE,
    Health,
)
from softcard.cards.nvme.layout import Layout
from softcard.cards.nvme.memory import HostMemory
from softcard.cards.nvme.status import CommandError, Status

RETAIN_EVENTS = 1 << 15
MAX_CHANGED = 1024
TOO_MANY_CHANGED = 0xFFFFFFFF

# Figure 194.
SMART = Layout(
    512,
    {
        "critical_warning": (0, 1),
        "temperature": (1, 2),
        "available_spare": (3, 1),
        "spare_threshold": (4, 1),
        "percentage_used": (5, 1),
        "data_units_read": (32, 16),
        "data_units_written": (48, 16),
        "host_reads": (64, 16),
        "host_writes": (80, 16),
        "busy_minutes": (96, 16),
        "power_cycles": (112, 16),
        "power_on_hours": (128, 16),
        "unsafe_shutdowns": (144, 16),
        "media_errors": (160, 16),
        "error_entries": (176, 16),
        "warning_minutes": (192, 4),
        "critical_minutes": (196, 4),
    },
)
# Figure 197.
FIRMWARE_SLOTS = Layout(512, {"active": (0, 1), "slot1": (8, 8)})

# Figure 202: bits of a command's entry.
SUPPORTED, CHANGES_BLOCKS, CHANGES_NAMESPACES, CHANGES_INVENTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
ALONE_ON_NAMESPACE = 1 << 16
ADMIN_EFFECTS = {
    AdminOpcode.FORMAT_NVM: CHANGES_BLOCKS | CHANGES_NAMESPACES | ALONE_ON_NAMESPACE,
    AdminOpcode.NAMESPACE_MANAGEMENT: CHANGES_INVENTORY,
    AdminOpcode.NAMESPACE_ATTACHMENT: CHANGES_INVENTORY,
}
IO_EFFECTS = dict.fromkeys(
    (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT), CHANGES_BLOCKS
)


class Logs:
    """The log pages; reading one acknowledges its events unless the host retains them.

    Args:
        memory: where a page goes.
        errors, events, health: what the pages are about.
        firmware: revision of the only slot.
        max_transfer: bytes that one command may move.
        admin_opcodes: the admin commands that there are.
    """

    def __init__(
        self,
        memory: HostMemory,
        errors: ErrorLog,
        events: Events,
        health: Health,
        *,
        firmware: str,
        max_transfer: int,
        admin_opcodes: Callable[[], set[int]],
    ) -> None:
        self.handlers: dict[int, Handler] = {AdminOpcode.GET_LOG_PAGE: self._get}
        self._memory = memory
        self._errors = errors
        self._events = events
        self._health = health
        self._firmware = firmware
        self._max_transfer = max_transfer
        self._admin_opcodes = admin_opcodes
        self._pages: dict[int, Callable[[Command], bytes]] = {
            0x01: self._error_information,
            0x02: self._smart,
            0x03: self._firmware_slots,
            0x04: self._changed_namespaces,
            0x05: self._command_effects,
        }

    def _get(self, command: Command) -> int:
        number = command.dw10 & 0xFF
        page = self._pages.get(number)
        if page is None:
            raise CommandError(Status.INVALID_LOG_PAGE)
        length = ((command.dw10 >> 16 | (command.dw11 & 0xFFFF) << 16) + 1) * 4
        offset = command.dw12 | command.dw13 << 32
        data = page(command)
        if length > self._max_transfer or offset & 3 or offset > len(data):
            raise CommandError(Status.INVALID_FIELD)
        part = data[offset : offset + length]
        self._memory.write(command.prp1, command.prp2, part.ljust(length, b"\0"))
        if not command.dw10 & RETAIN_EVENTS:
            if number == 0x04:
                self._events.changed.clear()
            self._events.acknowledge(number)
        return 0

    def _error_information(self, _command: Command) -> bytes:
        data = b"".join(entry.pack() for entry in self._errors.entries)
        return data.ljust(LOG_ENTRIES * 64, b"\0")

    def _smart(self, command: Command) -> bytes:
        if command.nsid not in (0, ALL_NAMESPACES):
            # Bit 0 of LPA says that there is no such page for each namespace.
            raise CommandError(Status.INVALID_FIELD)
        health = self._health
        return SMART.pack(
            critical_warning=health.warnings,
            temperature=health.temperature,
            available_spare=100,
            spare_threshold=SPARE_THRESHOLD,
            data_units_read=-(-health.units_read // 1000),
            data_units_written=-(-health.units_written // 1000),
            host_reads=health.reads,
            host_writes=health.writes,
            busy_minutes=int(health.busy // 60),
            power_cycles=health.power_cycles,
            power_on_hours=health.power_on_hours,
            unsafe_shutdowns=health.unsafe_shutdowns,
            media_errors=health.media_errors,
            error_entries=self._errors.count,
            warning_minutes=health.minutes_above(WARNING_TEMPERATURE),
            critical_minutes=health.minutes_above(CRITICAL_TEMPERATURE),
        )

    def _firmware_slots(self, _command: Command) -> bytes:
        return FIRMWARE_SLOTS.pack(active=1, slot1=self._firmware)

    def _changed_namespaces(self, _command: Command) -> bytes:
        changed = sorted(self._events.changed)
        if len(changed) > MAX_CHANGED:
            changed = [TOO_MANY_CHANGED]
        return struct.pack(f"<{len(changed)}I", *changed).ljust(MAX_CHANGED * 4, b"\0")

    def _command_effects(self, _command: Command) -> bytes:
        data = memoryview(bytearray(4096)).cast("I")
        for opcode in self._admin_opcodes():
            data[opcode] = SUPPORTED | ADMIN_EFFECTS.get(opcode, 0)  # type: ignore[call-overload]
        for io_opcode in IoOpcode:
            data[256 + io_opcode] = SUPPORTED | IO_EFFECTS.get(io_opcode, 0)
        return data.tobytes()
