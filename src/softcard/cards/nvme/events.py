"""Asynchronous events (NVMe 1.4, section 5.2) and the error log (section 5.14.1.1)."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from softcard.cards.nvme.command import DEFERRED, AdminOpcode, Command, Deferred, Handler
from softcard.cards.nvme.layout import Layout
from softcard.cards.nvme.status import CommandError, Status

REQUEST_LIMIT = 4
LOG_ENTRIES = 64
NO_COMMAND = 0xFFFF
NO_PARAMETER = 0xFFFF
NAMESPACE_NOTICES = 1 << 8

ERROR_ENTRY = Layout(
    64,
    {
        "error_count": (0, 8),
        "queue": (8, 2),
        "command": (10, 2),
        "status": (12, 2),
        "parameter": (14, 2),
        "lba": (16, 8),
        "namespace": (24, 4),
    },
)


class Event(enum.Enum):
    """Type, information and log page of what is reported (figures 146 to 149)."""

    INVALID_DOORBELL_REGISTER = (0, 0, 1)
    INVALID_DOORBELL_VALUE = (0, 1, 1)
    RELIABILITY = (1, 0, 2)
    TEMPERATURE = (1, 1, 2)
    SPARE = (1, 2, 2)
    NAMESPACE_CHANGED = (2, 0, 4)

    @property
    def type(self) -> int:
        """Asynchronous event type: reading the event's log page frees all events of the type."""
        return self.value[0]

    @property
    def log_page(self) -> int:
        """Where the host reads more, and thereby acknowledges the event."""
        return self.value[2]

    @property
    def result(self) -> int:
        """Dword 0 of the completion."""
        kind, information, page = self.value
        return kind | information << 8 | page << 16


@dataclass(frozen=True)
class ErrorEntry:
    """One failed command, or one error that belongs to none."""

    number: int
    queue: int
    command: int
    status: int
    lba: int
    namespace: int

    def pack(self) -> bytes:
        """The entry as the log page holds it."""
        return ERROR_ENTRY.pack(
            error_count=self.number,
            queue=self.queue,
            command=self.command,
            status=self.status << 1,
            parameter=NO_PARAMETER,
            lba=self.lba,
            namespace=self.namespace,
        )


class ErrorLog:
    """The newest errors.

    Attributes:
        count: errors over the life of the card.
        entries: the newest first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.entries: deque[ErrorEntry] = deque(maxlen=LOG_ENTRIES)

    def record(
        self,
        status: int = 0,
        *,
        queue: int = NO_COMMAND,
        command: int = NO_COMMAND,
        namespace: int = 0,
        lba: int = 0,
    ) -> None:
        """Enter an error."""
        self.count += 1
        entry = ErrorEntry(self.count, queue, command, status, lba, namespace)
        self.entries.appendleft(entry)


class Events:
    """Requests that wait for an event, and events that wait for a request.

    Args:
        complete: completes a request, with dword 0.
        fail: completes it with an error.

    Attributes:
        enabled: the asynchronous event configuration feature.
        changed: namespaces that changed since the host read the list of them.
    """

    def __init__(
        self,
        complete: Callable[[Command, int], object],
        fail: Callable[[Command, CommandError], object],
    ) -> None:
        self.enabled = 0
        self.changed: set[int] = set()
        self.handlers: dict[int, Handler] = {AdminOpcode.ASYNC_EVENT_REQUEST: self._request}
        self._complete = complete
        self._fail = fail
        self._requests: deque[Command] = deque()
        self._waiting: list[Event] = []
        self._reported: set[int] = set()

    def reset(self) -> None:
        """The controller was reset: requests and events are gone, and so is the list."""
        self._requests.clear()
        self._waiting.clear()
        self._reported.clear()
        self.changed.clear()

    def report(self, event: Event) -> None:
        """Tell the host, now or when it asks; once until it acknowledges events of this type."""
        if event.type not in self._reported and event not in self._waiting:
            self._waiting.append(event)
            self._deliver()

    def namespace_changed(self, nsid: int) -> None:
        """The identify data of a namespace, or whether it is attached, changed."""
        self.changed.add(nsid)
        if self.enabled & NAMESPACE_NOTICES:
            self.report(Event.NAMESPACE_CHANGED)

    def acknowledge(self, log_page: int) -> None:
        """The host has read a log page without retaining its events."""
        for event in Event:
            if event.log_page == log_page:
                self._reported.discard(event.type)
        self._deliver()

    def abort(self, cid: int) -> bool:
        """Complete the request with this identifier as aborted; whether there is one."""
        for request in self._requests:
            if request.cid == cid:
                self._requests.remove(request)
                self._fail(request, CommandError(Status.ABORT_REQUESTED))
                return True
        return False

    def _request(self, command: Command) -> Deferred:
        if len(self._requests) >= REQUEST_LIMIT:
            raise CommandError(Status.ASYNC_EVENT_LIMIT_EXCEEDED)
        self._requests.append(command)
        self._deliver()
        return DEFERRED

    def _deliver(self) -> None:
        for event in list(self._waiting):
            if not self._requests:
                return
            if event.type not in self._reported:
                self._waiting.remove(event)
                self._reported.add(event.type)
                self._complete(self._requests.popleft(), event.result)
