"""The interrupts of one function, as SET_IRQS wires them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from softcard.bus.vfio_user.eventfd import EventFd
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Irq

MESSAGES = (Irq.MSI, Irq.MSIX)


class Host(Protocol):
    """What the interrupts need of the connection."""

    def vectors_wired(self, vectors: list[int]) -> None:
        """These MSI or MSI-X vectors can be delivered, and no others."""

    def watch(self, fd: int, call: Callable[[], object]) -> None:
        """Call `call` whenever `fd` is readable."""

    def unwatch(self, fd: int) -> None:
        """No longer."""

    def send_interrupt(self, kind: int, vector: int, asserted: bool) -> None:
        """Tell the client by a message."""


class Line:
    """One interrupt of one type."""

    __slots__ = ("masked", "pending", "told", "trigger", "wired")

    def __init__(self) -> None:
        self.trigger: EventFd | None = None
        self.wired = False
        self.told = False
        self.masked = False
        self.pending = False


class Interrupts:
    """Every interrupt that the function has, by type and number.

    MSI and MSI-X are edges: what is signalled while masked is sent when that ends. INTx is a
    level: an eventfd is signalled once, which masks it until the client unmasks it; messages tell
    each change.

    Args:
        counts: how many there are of each type.
        host: the connection.
        by_messages: the client wants messages, because no descriptor can pass.
    """

    def __init__(self, counts: Sequence[int], host: Host, *, by_messages: bool) -> None:
        self.counts = counts
        self._host = host
        self._by_messages = by_messages
        self._lock = threading.RLock()
        self._lines = [[Line() for _ in range(count)] for count in counts]
        self._vectors: list[Line] = []
        self._vector_kind = Irq.MSIX
        self._asserted = False
        self._switches: dict[int, EventFd] = {}

    def close(self) -> None:
        """Close every descriptor."""
        with self._lock:
            for action in list(self._switches):
                self._close_switch(action)
            for lines in self._lines:
                for line in lines:
                    self._wire(line, None, wired=False)
            self._vectors = []

    # What the function does, from any thread.

    def vector(self, vector: int) -> None:
        """Signal an MSI or MSI-X vector."""
        with self._lock:
            if vector < len(self._vectors):
                self._fire(self._vectors[vector], self._vector_kind, vector)

    def level(self, asserted: bool) -> None:
        """Assert or release INTx."""
        with self._lock:
            self._asserted = asserted
            self._update_intx()

    def _update_intx(self) -> None:
        for line in self._lines[Irq.INTX]:
            if self._by_messages:
                if line.wired and line.told != self._asserted:
                    line.told = self._asserted
                    self._host.send_interrupt(Irq.INTX, 0, self._asserted)
            elif self._asserted and not line.masked and line.trigger is not None:
                line.masked = True
                line.trigger.signal()

    def _fire(self, line: Line, kind: int, vector: int) -> None:
        if line.masked:
            line.pending = True
        elif self._by_messages and line.wired:
            self._host.send_interrupt(kind, vector, True)
        elif line.trigger is not None:
            line.trigger.signal()

    # What the client does.

    def set(
        self, flags: int, kind: int, start: int, count: int, data: bytes, fds: list[int]
    ) -> None:
        """DEVICE_SET_IRQS; the descriptors are taken where there is no error.

        Raises:
            OSError: the combination means nothing (EINVAL).
        """
        action, form = flags & wire.ACTION_FLAGS, flags & wire.DATA_FLAGS
        if (
            kind >= len(self._lines)
            or action.bit_count() != 1
            or form.bit_count() != 1
            or flags & ~(wire.ACTION_FLAGS | wire.DATA_FLAGS)
            or start + count > len(self._lines[kind])
            or (fds and form != wire.DATA_EVENTFD)
        ):
            raise _invalid(f"flags {flags:#x} for {count} of type {kind} from {start}")
        if form == wire.DATA_EVENTFD:
            if action == wire.ACTION_TRIGGER:
                self._set_triggers(kind, range(start, start + count), data, fds)
            else:
                self._set_switch(action, kind, fds)
        elif not count:
            if action != wire.ACTION_TRIGGER or form != wire.DATA_NONE or start:
                raise _invalid("a count of 0")
            everything = len(self._lines[kind])
            self._wire_all(kind, range(everything), [None] * everything, [False] * everything)
            if kind == Irq.INTX:
                for switch in list(self._switches):
                    self._close_switch(switch)
        else:
            if form == wire.DATA_BOOL and len(data) < count:
                raise _invalid(f"{len(data)} bytes for {count} interrupts")
            with self._lock:
                for index in range(count):
                    if form == wire.DATA_NONE or data[index]:
                        self._act(action, kind, start + index)

    def _act(self, action: int, kind: int, number: int) -> None:
        line = self._lines[kind][number]
        if action == wire.ACTION_TRIGGER:
            self._fire(line, kind, number)
            return
        line.masked = action == wire.ACTION_MASK
        if line.pending and not line.masked:
            line.pending = False
            self._fire(line, kind, number)
        if kind == Irq.INTX:
            self._update_intx()

    def _set_triggers(self, kind: int, numbers: range, data: bytes, fds: list[int]) -> None:
        count = len(numbers)
        if self._by_messages:
            # Nothing can be passed: a byte each says which are wanted.
            if fds or len(data) not in (0, count):
                raise _invalid(f"{len(data)} bytes for {count} interrupts")
            wanted = [bool(byte) for byte in data or bytes(count)]
            self._wire_all(kind, numbers, [None] * count, wanted)
            return
        if len(fds) not in (0, count):
            raise _invalid(f"{len(fds)} descriptors for {count} interrupts")
        triggers: list[EventFd | None] = [EventFd(fd) for fd in fds] or [None] * count
        self._wire_all(kind, numbers, triggers, [bool(fds)] * count)

    def _wire_all(
        self, kind: int, numbers: range, triggers: list[EventFd | None], wired: list[bool]
    ) -> None:
        if kind in MESSAGES and kind == self._vector_kind:
            # First those that go: what the function signals from now on stays pending there.
            going = {number for number, stays in zip(numbers, wired, strict=True) if not stays}
            if any(self._lines[kind][number].wired for number in going):
                self._host.vectors_wired([n for n in self._wired() if n not in going])
        with self._lock:
            for number, trigger, stays in zip(numbers, triggers, wired, strict=True):
                line = self._lines[kind][number]
                self._wire(line, trigger, wired=stays)
                if stays and line.pending:
                    line.pending = False
                    self._fire(line, kind, number)
                line.pending = False
            if kind == Irq.INTX:
                self._update_intx()
                return
            self._find_vectors()
        if kind in MESSAGES:
            self._host.vectors_wired(self._wired())

    @staticmethod
    def _wire(line: Line, trigger: EventFd | None, *, wired: bool) -> None:
        if line.trigger is not None:
            line.trigger.close()
        line.trigger = trigger
        line.wired = wired
        line.masked = line.told = False

    def _find_vectors(self) -> None:
        for kind in (Irq.MSIX, Irq.MSI):
            if any(line.wired for line in self._lines[kind]):
                self._vectors, self._vector_kind = self._lines[kind], kind
                return
        self._vectors = []

    def _wired(self) -> list[int]:
        return [number for number, line in enumerate(self._vectors) if line.wired]

    # Eventfds by which the client, or its KVM, masks and unmasks INTx.

    def _set_switch(self, action: int, kind: int, fds: list[int]) -> None:
        if kind != Irq.INTX or len(fds) > 1:
            raise _invalid(f"{len(fds)} descriptors that mask type {kind}")
        switch = EventFd(fds[0]) if fds else None
        self._close_switch(action)
        if switch is not None:
            self._switches[action] = switch
            self._host.watch(switch.fd, lambda: self._switched(action, switch))

    def _close_switch(self, action: int) -> None:
        switch = self._switches.pop(action, None)
        if switch is not None:
            self._host.unwatch(switch.fd)
            switch.close()

    def _switched(self, action: int, switch: EventFd) -> None:
        with self._lock:
            if switch.take():
                for number in range(len(self._lines[Irq.INTX])):
                    self._act(action, Irq.INTX, number)


def _invalid(what: str) -> OSError:
    return OSError(errno.EINVAL, f"SET_IRQS with {what}")
