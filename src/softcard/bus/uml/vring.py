"""A split virtqueue, seen from the device (Virtual I/O Device 1.2, section 2.7).

desc[N]                      avail                      used
+-------------------------+  +-------+-----+---------+  +-------+-----+------------------+
| address 8 | length 4 |  |  | flags | idx | ring[N] |  | flags | idx | (id 4, len 4)[N] |
| flags 2   | next 2   |  |  +-------+-----+---------+  +-------+-----+------------------+
+-------------------------+     2      2     2 each        2      2       8 each
"""

from __future__ import annotations

import struct
import threading

from softcard.bus.uml.memory import GuestMemory
from softcard.errors import DmaError

DESC = struct.Struct("<QIHH")
DESC_F_NEXT, DESC_F_WRITE = 1, 2
USED_F_NO_NOTIFY = 1
AVAIL_F_NO_INTERRUPT = 1
MAX_CHAIN = 4

# Taking a lock is a full memory barrier. Without one between a store that the driver looks at and
# a load of what it stores, the processor may do the load first: both sides would see nothing new,
# and wait for each other.
_BARRIER = threading.Lock()

Descriptor = tuple[int, int, bool]


class Vring:
    """The device's side of one split virtqueue of `size` entries.

    All three parts are the guest's memory and so may hold anything at any time.
    """

    def __init__(self, memory: GuestMemory, size: int, desc: int, avail: int, used: int) -> None:
        if size < 1 or size & (size - 1) or size > 32768:
            raise DmaError(desc, size, "a virtqueue's size is a power of two up to 32768")
        self._memory = memory
        self._mask = size - 1
        self._desc = memory.map(desc, 16 * size)
        self._avail = memory.map(avail, 4 + 2 * size).cast("H")
        used_view = memory.map(used, 4 + 8 * size)
        self._used_words = used_view.cast("I")
        self._used = used_view.cast("H")
        self._seen = 0
        self._done = 0

    def pending(self) -> bool:
        """Whether the driver has offered a chain that was not taken yet."""
        return self._avail[1] != self._seen

    def take(self) -> int:
        """The head of the next chain; call it only after `pending`."""
        head = self._avail[2 + (self._seen & self._mask)]
        self._seen = (self._seen + 1) & 0xFFFF
        return head & self._mask

    def offered(self) -> list[int]:
        """The heads of the chains that were not taken yet."""
        count = (self._avail[1] - self._seen) & 0xFFFF
        return [
            self._avail[2 + (self._seen + at & self._mask)] & self._mask
            for at in range(min(count, self._mask + 1))
        ]

    def descriptor(self, index: int) -> tuple[int, int, int, int]:
        """Address, length, flags and next of one descriptor."""
        return DESC.unpack_from(self._desc, (index & self._mask) << 4)

    def chain(self, head: int) -> list[Descriptor]:
        """`(address, length, the device writes it)` of each buffer of a chain."""
        found = []
        for _ in range(MAX_CHAIN):
            address, length, flags, following = self.descriptor(head)
            found.append((address, length, bool(flags & DESC_F_WRITE)))
            if not flags & DESC_F_NEXT:
                break
            head = following
        return found

    def put(self, head: int, written: int) -> None:
        """Return a chain to the driver, `written` bytes of it filled."""
        done = self._done
        at = 1 + ((done & self._mask) << 1)
        self._used_words[at] = head
        self._used_words[at + 1] = written
        self._done = done = (done + 1) & 0xFFFF
        # One aligned store publishes the entry; x86 keeps stores in order.
        self._used[1] = done

    def notify_unless_pending(self) -> bool:
        """Ask the driver to kick; True, and no kick may come, when a chain is there already."""
        self.notify(True)
        with _BARRIER:
            return self.pending()

    def wants_call(self) -> bool:
        """Whether the driver wants to be told of what was put; it may poll instead."""
        with _BARRIER:
            return not self._avail[0] & AVAIL_F_NO_INTERRUPT

    def notify(self, wanted: bool) -> None:
        """Ask the driver to kick when it offers a chain, or not to bother."""
        self._used[0] = 0 if wanted else USED_F_NO_NOTIFY
