"""The interrupt queue: messages to the guest, from any thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from softcard.bus.uml.memory import GuestMemory
from softcard.bus.uml.protocol import INTERRUPTS
from softcard.bus.uml.vring import Vring
from softcard.errors import DmaError

log = logging.getLogger("softcard.bus.uml")


class InterruptQueue:
    """Puts messages into the few buffers that the guest has free; the others wait their turn.

    Args:
        memory: the guest's memory.
        call: tells the guest that a queue has something for it.
    """

    def __init__(self, memory: GuestMemory, call: Callable[[int], None]) -> None:
        self._memory = memory
        self._call = call
        self._ring: Vring | None = None
        self._lock = threading.Lock()
        self._messages: deque[bytes] = deque()

    @property
    def waiting(self) -> bool:
        """Whether messages wait for a free buffer."""
        return bool(self._messages)

    def start(self, ring: Vring) -> None:
        """The queue is ready."""
        with self._lock:
            ring.notify(False)
            self._ring = ring
            self._send()

    def stop(self) -> None:
        """The guest takes the queue back; when this returns, no other thread uses it."""
        with self._lock:
            self._ring = None
            self._messages.clear()

    def send(self, message: bytes) -> None:
        """Send a message, or let it wait for a buffer."""
        with self._lock:
            self._messages.append(message)
            self._send()

    def retry(self) -> bool:
        """Send what waits, as far as there are buffers now; whether there were any."""
        with self._lock:
            return self._send()

    def _send(self) -> bool:
        ring, messages = self._ring, self._messages
        if ring is None or not messages:
            return False
        sent = False
        while messages and (ring.pending() or ring.notify_unless_pending()):
            head = ring.take()
            address, length, _, _ = ring.descriptor(head)
            message = messages[0]
            try:
                self._memory.map(address, min(length, len(message)))[:] = message[:length]
            except DmaError as error:
                log.warning("the guest offered no memory for an interrupt: %s", error)
                ring.put(head, 0)
                continue
            messages.popleft()
            ring.put(head, len(message))
            sent = True
        if not messages:
            ring.notify(False)
        if sent and ring.wants_call():
            self._call(INTERRUPTS)
        return sent
