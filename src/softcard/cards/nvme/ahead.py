"""Read-ahead of what commands need from the host, where the bus reaches its memory by messages.

One by one, each PRP list and each piece of data would take a round trip, which over a network is
all the time there is. Read for all commands that have come, they take two round trips together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from softcard.cards.nvme.status import CommandError
from softcard.errors import DmaError

if TYPE_CHECKING:
    from softcard.cards.nvme.memory import HostMemory

MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Transfer:
    """A command's data buffer; `from_host` where the command reads it."""

    prp1: int
    prp2: int
    length: int
    from_host: bool


class ReadAhead:
    """Lists and data that were read before the commands are executed, and are theirs: the host
    leaves them alone until it sees the completions.

    Args:
        memory: the host's memory.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._lists: dict[tuple[int, int], bytes] = {}
        self._data: dict[tuple[int, int, int], bytes] = {}

    def prepare(self, transfers: Iterable[Transfer]) -> None:
        """Read what these need; where that fails, each command finds out for itself."""
        self.forget()
        chosen, total = [], 0
        for transfer in transfers:
            total += transfer.length
            if total > MAX_BYTES:
                break
            chosen.append(transfer)
        try:
            self._read_lists(chosen)
            self._read_data([transfer for transfer in chosen if transfer.from_host])
        except DmaError:
            self.forget()

    def _read_lists(self, transfers: list[Transfer]) -> None:
        size = self._memory.page_size
        places = []
        for transfer in transfers:
            entries = -(-(transfer.length - size + (transfer.prp1 & (size - 1))) // size)
            if entries > 1:
                here = (size - (transfer.prp2 & (size - 1))) // 8
                places.append((transfer.prp2, 8 * min(entries, here)))
        self._lists = dict(zip(places, self._memory.dma.read_many(places), strict=True))

    def _read_data(self, transfers: list[Transfer]) -> None:
        found: list[tuple[Transfer, list[tuple[int, int]]]] = []
        for transfer in transfers:
            try:
                segments = self._memory.segments(transfer.prp1, transfer.prp2, transfer.length)
            except CommandError:
                continue
            found.append((transfer, segments))
        pieces = iter(self._memory.dma.read_many([s for _, segments in found for s in segments]))
        for transfer, segments in found:
            data = b"".join(next(pieces) for _ in segments)
            self._data[transfer.prp1, transfer.prp2, transfer.length] = data

    def forget(self) -> None:
        """The commands have been executed."""
        self._lists.clear()
        self._data.clear()

    def read(self, address: int, length: int) -> bytes:
        """A list, from what was read or from the host."""
        data = self._lists.get((address, length))
        return self._memory.dma.read(address, length) if data is None else data

    def data(self, prp1: int, prp2: int, length: int) -> bytes | None:
        """A command's data, if it was read."""
        return self._data.get((prp1, prp2, length))
