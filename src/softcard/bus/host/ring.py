"""The ring: what drivers ask of the card, in bus order; a port of the card's loop."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Sequence

from softcard.bus.host import uapi
from softcard.bus.host.device import Device
from softcard.bus.host.port import Port
from softcard.model.link import ResetKind

AT_ONCE = 64
ENTRIES_MASK = uapi.RING_ENTRIES - 1
WORDS = uapi.OP_SIZE // 8
COUNT_MASK = 0xFFFFFFFF


class Ring:
    """Serves the entries of a card's ring.

    Args:
        device: the card in the kernel.
        ports: by function.
        added: called when the card is enumerated.
        gone: called when it is off the bus.
    """

    def __init__(
        self,
        device: Device,
        ports: Sequence[Port],
        added: Callable[[], object],
        gone: Callable[[], object],
    ) -> None:
        self._fd: int = device.fd
        self._ports = ports
        self._reads = [port.function.read for port in ports]
        self._writes = [port.function.write for port in ports]
        self._added = added
        self._gone = gone
        ring = device.ring
        self._head = ring[uapi.HEAD : uapi.HEAD + 4].cast("I")
        self._tail = ring[uapi.TAIL : uapi.TAIL + 4].cast("I")
        self._ops = ring[uapi.OPS : uapi.ANSWERS].cast("Q")
        self._answers = ring[uapi.ANSWERS : uapi.RING_SIZE].cast("Q")
        self._next = 0

    def fileno(self) -> int:
        """Readable when armed and something has come."""
        return self._fd

    def receive(self) -> None:
        """The descriptor is readable."""
        if not self.poll() and not self._armed_ready():
            # Readable with nothing in the ring: the kernel says no more of a card that was pulled.
            self._gone()

    def poll(self) -> bool:
        """Serve entries that are there; not all of very many, so that others have their turn."""
        at = self._next
        waiting = self._head[0] - at & COUNT_MASK
        if not waiting:
            return False
        ops, answers = self._ops, self._answers
        for _ in range(min(waiting, AT_ONCE)):
            entry = (at & ENTRIES_MASK) * WORDS
            word = ops[entry]
            code = word & 0xFF
            if code == uapi.WRITE:
                self._writes[word >> 8 & 0xFF](
                    word >> 16 & 0xFF, ops[entry + 1], word >> 24 & 0xFF, ops[entry + 2]
                )
            elif code == uapi.READ:
                value = self._reads[word >> 8 & 0xFF](
                    word >> 16 & 0xFF, ops[entry + 1], word >> 24 & 0xFF
                )
                slot = word >> 32 & 0xFFFF
                answer = slot * WORDS
                answers[answer] = value
                answers[answer + 1] = ops[entry + 2]
                if answers[answer + 2]:
                    fcntl.ioctl(self._fd, uapi.WAKE, slot)
            else:
                self._serve_rare(code, word, ops[entry + 1], ops[entry + 2])
            at = at + 1 & COUNT_MASK
            self._next = self._tail[0] = at
        return True

    def _serve_rare(self, code: int, word: int, offset: int, value: int) -> None:
        port = self._ports[word >> 8 & 0xFF]
        size = word >> 24 & 0xFF
        if code == uapi.CONFIG_READ:
            answer = (word >> 32 & 0xFFFF) * WORDS
            self._answers[answer] = port.function.config_read(offset, size)
            self._answers[answer + 1] = value
            if self._answers[answer + 2]:
                fcntl.ioctl(self._fd, uapi.WAKE, word >> 32 & 0xFFFF)
        elif code == uapi.CONFIG_WRITE:
            port.function.config_write(offset, size, value)
            port.config_written(offset, size)
        elif code == uapi.HOT_RESET:
            for each in self._ports:
                each.function.reset(ResetKind.HOT)
        elif code == uapi.DMA_ADDED:
            port.memory_added(offset, value)
        elif code == uapi.DMA_REMOVED:
            port.memory_removed(offset, value)
        elif code == uapi.ADDED:
            self._added()
        elif code == uapi.GONE:
            self._gone()

    def arm(self) -> bool:
        """Ask to be woken; True when something has come meanwhile."""
        return self._armed_ready()

    def _armed_ready(self) -> bool:
        return bool(fcntl.ioctl(self._fd, uapi.ARM))

    def disarm(self) -> None:
        """Nothing to do: the kernel tells once."""
