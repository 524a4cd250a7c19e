"""Get Features and Set Features (NVMe 1.4, sections 5.13 and 5.21)."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

from softcard.cards.nvme.command import (
    ALL_NAMESPACES,
    DEFERRED,
    AdminOpcode,
    Command,
    Deferred,
    Handler,
)
from softcard.cards.nvme.controller import Controller
from softcard.cards.nvme.events import Event
from softcard.cards.nvme.health import WARNING_TEMPERATURE, CriticalWarning
from softcard.cards.nvme.queue_commands import QueueCommands
from softcard.cards.nvme.status import CommandError, Status

SAVE = 1 << 31
CURRENT, DEFAULT, SAVED, CAPABILITIES = range(4)
SAVEABLE, NAMESPACE_SPECIFIC, CHANGEABLE = 1 << 0, 1 << 1, 1 << 2

TIMESTAMP_SIZE, TIMESTAMP_MASK, TIMESTAMP_SET_BY_HOST = 8, (1 << 48) - 1, 1 << 49
HOST_BEHAVIOR_SIZE = 512
OVER, UNDER = 0, 1
COMPOSITE_SENSOR, ALL_SENSORS = 0x0, 0xF
DEALLOCATED_ERROR_ENABLE = 1 << 16
NONE_REQUESTED = 0xFFFF
SMART_EVENTS = {
    CriticalWarning.SPARE: Event.SPARE,
    CriticalWarning.TEMPERATURE: Event.TEMPERATURE,
    CriticalWarning.RELIABILITY: Event.RELIABILITY,
    CriticalWarning.READ_ONLY: Event.RELIABILITY,
}


class FeatureId(enum.IntEnum):
    """Feature identifiers (figure 271)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENTS = 0x0B
    TIMESTAMP = 0x0E
    HOST_BEHAVIOR = 0x16


@dataclass(frozen=True)
class Feature:
    """What the specification says of a feature.

    Attributes:
        mask: the bits of dword 11 that are its value; the host's other bits are ignored.
        default: its value before the host sets another.
        saveable: the host may make a value outlive resets and power.
        per_namespace: each namespace has its own.
    """

    mask: int = 0
    default: int = 0
    saveable: bool = True
    per_namespace: bool = False

    @property
    def capabilities(self) -> int:
        """Dword 0 of the answer to "supported capabilities" (figure 165)."""
        return (
            CHANGEABLE
            | (SAVEABLE if self.saveable else 0)
            | (NAMESPACE_SPECIFIC if self.per_namespace else 0)
        )


FEATURES = {
    FeatureId.ARBITRATION: Feature(0xFFFFFF07, default=0x07),
    FeatureId.POWER_MANAGEMENT: Feature(0xFF),
    FeatureId.TEMPERATURE_THRESHOLD: Feature(0xFFFF, default=WARNING_TEMPERATURE),
    FeatureId.ERROR_RECOVERY: Feature(0xFFFF, per_namespace=True),
    FeatureId.VOLATILE_WRITE_CACHE: Feature(0x1, default=1),
    FeatureId.NUMBER_OF_QUEUES: Feature(saveable=False),
    FeatureId.INTERRUPT_COALESCING: Feature(0xFFFF),
    FeatureId.INTERRUPT_VECTOR: Feature(0x1FFFF),
    FeatureId.WRITE_ATOMICITY: Feature(0x1),
    FeatureId.ASYNC_EVENTS: Feature(0x1FF),
    FeatureId.TIMESTAMP: Feature(saveable=False),
    FeatureId.HOST_BEHAVIOR: Feature(saveable=False),
}


@dataclass(frozen=True, order=True)
class Key:
    """Which value: of a feature, of a namespace (0 for the controller), and, where the feature has
    several, of which vector or threshold."""

    feature: int
    nsid: int = 0
    which: int = 0

    def __str__(self) -> str:
        return f"{self.feature} {self.nsid} {self.which}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """The inverse of `str`; raises `ValueError`."""
        feature, nsid, which = map(int, text.split())
        return cls(FeatureId(feature), nsid, which)


class Features:
    """The features' values, and what they do.

    Args:
        controller: whose features they are.
        queues: what the number of queues is for.
        changed: called when a value was saved; what it returns is work for the background thread,
            or None.
    """

    def __init__(
        self,
        controller: Controller,
        queues: QueueCommands,
        changed: Callable[[], Callable[[], object] | None],
    ) -> None:
        self.saved: dict[Key, int] = {}
        self.handlers: dict[int, Handler] = {
            AdminOpcode.GET_FEATURES: self._get,
            AdminOpcode.SET_FEATURES: self._set,
        }
        self._controller = controller
        self._queues = queues
        self._changed = changed
        self._current: dict[Key, int] = {}
        self._warned = CriticalWarning(0)
        self._reset_data()
        self._apply()

    def reset(self) -> None:
        """The controller was reset: saved and default values hold again."""
        self._current.clear()
        self._reset_data()
        self._apply()

    def load(self, name: str, value: int) -> None:
        """Use a value that was saved; raises `ValueError` where there is no such feature."""
        self.saved[Key.parse(name)] = value
        self._apply()

    def _reset_data(self) -> None:
        self._host_behavior = bytes(HOST_BEHAVIOR_SIZE)
        self._timestamp, self._timestamp_flags = 0, 0
        self._timestamp_at = time.monotonic()

    def forget(self, nsid: int) -> None:
        """A namespace was deleted."""
        for values in (self._current, self.saved):
            for key in [k for k in values if k.nsid == nsid]:
                del values[key]

    # The values.

    def _default(self, key: Key) -> int:
        if key == Key(FeatureId.TEMPERATURE_THRESHOLD, which=UNDER):
            return 0
        if key.feature == FeatureId.INTERRUPT_VECTOR:
            return key.which
        if key.feature == FeatureId.NUMBER_OF_QUEUES:
            return (self._queues.max_qid - 1) * 0x10001
        return FEATURES[FeatureId(key.feature)].default

    def _saved(self, key: Key) -> int:
        return self.saved.get(key, self._default(key))

    def value(self, key: Key) -> int:
        """The current value."""
        if key.feature == FeatureId.NUMBER_OF_QUEUES:
            submission, completion = self._queues.granted
            return (submission - 1) | (completion - 1) << 16
        return self._current.get(key, self._saved(key))

    def _apply(self) -> None:
        """Let the values have their effects."""
        controller = self._controller
        controller.io.write_through = not self.value(Key(FeatureId.VOLATILE_WRITE_CACHE))
        controller.events.enabled = self.value(Key(FeatureId.ASYNC_EVENTS))
        threshold = FeatureId.TEMPERATURE_THRESHOLD
        controller.health.over_threshold = self.value(Key(threshold, which=OVER))
        controller.health.under_threshold = self.value(Key(threshold, which=UNDER))
        self.check_health()

    def check_health(self) -> None:
        """Report critical warnings that are new."""
        events, warnings = self._controller.events, self._controller.health.warnings
        new, self._warned = warnings & ~self._warned, warnings
        for warning, event in SMART_EVENTS.items():
            if new & warning & events.enabled:
                events.report(event)

    # The commands.

    def _keys(self, command: Command, *, setting: bool) -> list[Key]:
        """Which values the command is about."""
        number, nsid = command.dw10 & 0xFF, command.nsid
        feature = FEATURES.get(number)
        if feature is None:
            raise CommandError(Status.INVALID_FIELD)
        if feature.per_namespace:
            if nsid == ALL_NAMESPACES and not setting:
                raise CommandError(Status.INVALID_NAMESPACE)
            return [Key(number, n.nsid) for n in self._controller.namespaces.selected(nsid)]
        if setting and nsid not in (0, ALL_NAMESPACES):
            raise CommandError(Status.FEATURE_NOT_NAMESPACE_SPECIFIC)
        if number == FeatureId.TEMPERATURE_THRESHOLD:
            sensor, which = command.dw11 >> 16 & 0xF, command.dw11 >> 20 & 0x3
            if which not in (OVER, UNDER) or sensor not in (
                (COMPOSITE_SENSOR, ALL_SENSORS) if setting else (COMPOSITE_SENSOR,)
            ):
                raise CommandError(Status.INVALID_FIELD)
            return [Key(number, which=which)]
        if number == FeatureId.INTERRUPT_VECTOR:
            vector = command.dw11 & 0xFFFF
            if vector >= self._controller.interrupts.vectors:
                raise CommandError(Status.INVALID_FIELD)
            return [Key(number, which=vector)]
        return [Key(number)]

    def _get(self, command: Command) -> int:
        (key,) = self._keys(command, setting=False)
        select = command.dw10 >> 8 & 0x7
        if select > CAPABILITIES:
            raise CommandError(Status.INVALID_FIELD)
        if select == CAPABILITIES:
            return FEATURES[FeatureId(key.feature)].capabilities
        memory = self._controller.memory
        if key.feature == FeatureId.TIMESTAMP:
            data = self._timestamp_now() if select == CURRENT else bytes(TIMESTAMP_SIZE)
            memory.write(command.prp1, command.prp2, data)
            return 0
        if key.feature == FeatureId.HOST_BEHAVIOR:
            data = self._host_behavior if select == CURRENT else bytes(HOST_BEHAVIOR_SIZE)
            memory.write(command.prp1, command.prp2, data)
            return 0
        return {CURRENT: self.value, DEFAULT: self._default, SAVED: self._saved}[select](key)

    def _set(self, command: Command) -> int | Deferred:
        keys = self._keys(command, setting=True)
        number = command.dw10 & 0xFF
        feature = FEATURES[FeatureId(number)]
        if command.dw10 & SAVE and not feature.saveable:
            raise CommandError(Status.FEATURE_NOT_SAVEABLE)
        memory = self._controller.memory
        if number == FeatureId.NUMBER_OF_QUEUES:
            return self._set_number_of_queues(command)
        if number == FeatureId.TIMESTAMP:
            data = memory.read(command.prp1, command.prp2, TIMESTAMP_SIZE)
            self._timestamp = int.from_bytes(data, "little") & TIMESTAMP_MASK
            self._timestamp_flags = TIMESTAMP_SET_BY_HOST
            self._timestamp_at = time.monotonic()
            return 0
        if number == FeatureId.HOST_BEHAVIOR:
            self._host_behavior = memory.read(command.prp1, command.prp2, HOST_BEHAVIOR_SIZE)
            return 0
        if (number == FeatureId.POWER_MANAGEMENT and command.dw11 & 0x1F) or (
            # There is one power state, and deallocated blocks read as zero, without an error.
            number == FeatureId.ERROR_RECOVERY and command.dw11 & DEALLOCATED_ERROR_ENABLE
        ):
            raise CommandError(Status.INVALID_FIELD)
        value = command.dw11 & feature.mask
        self._current.update(dict.fromkeys(keys, value))
        if command.dw10 & SAVE:
            self.saved.update(dict.fromkeys(keys, value))
        self._apply()
        return self._settled(command, number)

    def _settled(self, command: Command, number: int) -> int | Deferred:
        """Complete the command when what it promises is on the medium."""
        background = self._controller.background
        work = self._changed() if command.dw10 & SAVE else None
        if work is not None:
            background.submit(work, self._controller.finisher(command))
            return DEFERRED
        if (
            number == FeatureId.VOLATILE_WRITE_CACHE
            and self._controller.io.write_through
            and self._controller.namespaces.whole.slow
        ):
            background.flush(self._controller.finisher(command))
            return DEFERRED
        return 0

    def _set_number_of_queues(self, command: Command) -> int:
        if self._queues.any_created:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR)
        submission, completion = command.dw11 & 0xFFFF, command.dw11 >> 16
        if NONE_REQUESTED in (submission, completion):
            raise CommandError(Status.INVALID_FIELD)
        most = self._queues.max_qid
        self._queues.granted = min(submission + 1, most), min(completion + 1, most)
        return self.value(Key(FeatureId.NUMBER_OF_QUEUES))

    def _timestamp_now(self) -> bytes:
        passed = int((time.monotonic() - self._timestamp_at) * 1000)
        now = (self._timestamp + passed) & TIMESTAMP_MASK | self._timestamp_flags
        return now.to_bytes(TIMESTAMP_SIZE, "little")
