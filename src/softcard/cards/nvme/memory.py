"""The host's memory as commands name it: PRP entries and lists (NVMe 1.4, section 4.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from softcard.cards.nvme.ahead import ReadAhead
from softcard.cards.nvme.registers import PAGE_SIZE_MIN
from softcard.cards.nvme.status import CommandError, Status
from softcard.model.dma import Dma

PRP_SIZE = 8
MAX_CACHED_PAGES = 1 << 15
SMALL_REMOVAL = 1 << 20


class HostMemory:
    """Finds, reads and writes the data of commands.

    Whole pages are looked up on the bus once and kept until the bus takes them away; hosts use the
    same buffers over and over.

    Attributes:
        dma: where it is found.
        pages: views of whole pages by their address, those looked up so far.
        page_size: bytes of a memory page (CC.MPS).
        shared: the bus shares all memory.
        moves: it does not, but moves memory by `Dma.move`.
        ahead: what was read before it is needed, where the bus shares no memory.
    """

    def __init__(self, dma: Dma) -> None:
        self.pages: dict[int, memoryview] = {}
        self.page_size = PAGE_SIZE_MIN
        self.shared = False
        self.moves = False
        self.ahead = ReadAhead(self)
        self.dma = dma

    def start(self, page_size: int) -> None:
        """The controller is enabled with this memory page size."""
        self.drop()
        self.page_size = page_size
        self.shared = self.dma.shared
        self.moves = self.dma.moves and not self.shared

    def drop(self) -> None:
        """Forget every page."""
        self.pages.clear()
        self.ahead.forget()

    def removed(self, address: int, size: int) -> None:
        """The bus takes this memory away."""
        if size > SMALL_REMOVAL:
            self.pages.clear()
            return
        first = address & -self.page_size
        for page in range(first, address + size, self.page_size):
            self.pages.pop(page, None)

    # Data of commands.

    def views(self, prp1: int, prp2: int, length: int) -> list[memoryview]:
        """A command's data buffer, in place; only where the bus shares memory.

        Raises:
            CommandError: a PRP entry is misaligned.
            DmaError: the buffer is not, as a whole, memory that the host allows.
        """
        pages, size, dma = self.pages, self.page_size, self.dma
        found = []
        for address, part in self.segments(prp1, prp2, length):
            if part == size:
                view = pages.get(address)
                if view is None:
                    view = dma.map(address, size)
                    if len(pages) >= MAX_CACHED_PAGES:
                        pages.clear()
                    pages[address] = view
            else:
                view = dma.map(address, part)
            found.append(view)
        return found

    def read(self, prp1: int, prp2: int, length: int) -> bytes:
        """Copy a command's data from the host.

        Raises:
            CommandError, DmaError: see `views`.
        """
        data = self.ahead.data(prp1, prp2, length)
        if data is None:
            data = b"".join(self.dma.read_many(self.segments(prp1, prp2, length)))
        return data

    def write(self, prp1: int, prp2: int, data: bytes | bytearray | memoryview) -> None:
        """Copy a command's data to the host.

        Raises:
            CommandError, DmaError: see `views`.
        """
        rest = memoryview(data)
        pieces = []
        for address, part in joined(self.segments(prp1, prp2, len(rest))):
            pieces.append((address, rest[:part]))
            rest = rest[part:]
        self.dma.write_many(pieces)

    # Where they are.

    def segments(self, prp1: int, prp2: int, length: int) -> list[tuple[int, int]]:
        """Address and length of each piece of a data buffer.

        Raises:
            CommandError: a PRP entry is misaligned.
            DmaError: a PRP list is not memory that the host allows.
        """
        size = self.page_size
        if prp1 & 3:
            raise CommandError(Status.PRP_OFFSET_INVALID)
        first = size - (prp1 & (size - 1))
        if length <= first:
            return [(prp1, length)] if length else []
        found = [(prp1, first)]
        rest = length - first
        if rest <= size:
            if prp2 & (size - 1):
                raise CommandError(Status.PRP_OFFSET_INVALID)
            found.append((prp2, rest))
            return found
        for entry in self._list(prp2, -(-rest // size)):
            found.append((entry, min(rest, size)))
            rest -= size
        return found

    def _list(self, address: int, count: int) -> list[int]:
        """The entries of a PRP list, followed from page to page."""
        size = self.page_size
        if address & (PRP_SIZE - 1):
            raise CommandError(Status.PRP_OFFSET_INVALID)
        entries: list[int] = []
        while True:
            here = (size - (address & (size - 1))) // PRP_SIZE
            wanted = count - len(entries)
            chained = wanted > here
            taken = here if chained else wanted
            raw = self.ahead.read(address, taken * PRP_SIZE)
            entries += struct.unpack(f"<{taken}Q", raw)
            # Only the first list may begin inside a page; so every further one holds entries of
            # its own, and a list that leads to itself comes to an end.
            if any(entry & (size - 1) for entry in entries[-taken:]):
                raise CommandError(Status.PRP_OFFSET_INVALID)
            if not chained:
                return entries
            address = entries.pop()


def joined(segments: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same memory, with segments that follow one another made into one."""
    runs: list[tuple[int, int]] = []
    for address, length in segments:
        if runs and runs[-1][0] + runs[-1][1] == address:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((address, length))
    return runs
