"""BARs whose registers are a server's, and whose memory is where the server keeps it."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from softcard.bridge.vfio_user.description import RegionFile, RegionInfo
from softcard.model.bar import Bar, Memory
from softcard.model.link import SharedRange, all_ones
from softcard.model.mapping import Mapping
from softcard.pcie.config import BarLayout
from softcard.pcie.register_file import RegisterBlock, RegisterFile

log = logging.getLogger("softcard.bridge")

PAGE = mmap.PAGESIZE


class Server(Protocol):
    """Whom accesses to the regions go to; nothing here raises."""

    def read(self, region: int, offset: int, size: int) -> bytes:
        """All-ones where the server gives nothing."""

    def write(self, region: int, offset: int, data: bytes) -> None:
        """A posted write."""


class RemoteFile(RegisterFile):
    """A region that a server answers, but for the parts that were entered here."""

    def __init__(self, server: Server, index: int, info: RegionInfo, size: int) -> None:
        super().__init__(0)
        self.size = size
        self._server = server
        self._index = index
        self._readable = info.size if info.readable else 0
        self._writable = info.size if info.writable else 0

    def read(self, offset: int, size: int) -> int:
        """A driver's read of 1 to 8 bytes."""
        end = offset + size
        for start, stop, _, _ in self._regions:
            if offset < stop and start < end:
                return self._read_parts(offset, size)
        if end > self._readable:
            return all_ones(size)
        return int.from_bytes(self._server.read(self._index, offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A driver's write of 1 to 8 bytes."""
        end = offset + size
        for start, stop, _, _ in self._regions:
            if offset < stop and start < end:
                self._write_parts(offset, size, value)
                return
        if end <= self._writable:
            self._server.write(self._index, offset, value.to_bytes(size, "little"))

    def forget_memory(self) -> None:
        """The memory that was entered has gone."""
        self._regions = [r for r in self._regions if not isinstance(r[3], RemoteMemory)]

    def read_block(self, offset: int, length: int) -> bytes:
        """A read of any length."""
        return b"".join(
            self._read_piece(at, size, here) for at, size, here in self._pieces(offset, length)
        )

    def _read_piece(self, at: int, size: int, here: bool) -> bytes:
        if here:
            return self.read(at, size).to_bytes(size, "little")
        known = max(min(size, self._readable - at), 0)
        data = self._server.read(self._index, at, known) if known else b""
        return data + b"\xff" * (size - known)

    def write_block(self, offset: int, data: bytes | memoryview) -> None:
        """A write of any length."""
        for at, size, here in self._pieces(offset, len(data)):
            part = bytes(data[at - offset :][:size])
            if here:
                self.write(at, size, int.from_bytes(part, "little"))
            elif part := part[: max(self._writable - at, 0)]:
                self._server.write(self._index, at, part)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Offset and size, and whether that is answered here, in naturally aligned pieces."""
        end = offset + length
        for start, stop, _, _ in sorted(self._regions, key=lambda region: region[0]):
            if offset < min(start, end):
                yield offset, min(start, end) - offset, False
                offset = min(start, end)
            while start <= offset < min(stop, end):
                size = 4
                while offset % size or offset + size > min(stop, end):
                    size //= 2
                yield offset, size, True
                offset += size
        if offset < end:
            yield offset, end - offset, False


class RemoteMemory(Memory):
    """A part of a BAR that is mapped here."""

    def __init__(self, offset: int, size: int, mapping: Mapping) -> None:
        super().__init__(offset, size)
        self.mapping = mapping
        self.view = mapping.view


class RemoteBar(Bar):
    """A BAR of a server's card.

    Args:
        number: 0 to 5.
        layout: its shape.
        info: what the server says of the region.
        server: whom accesses go to.
        kept: offset and size of what is answered here, and must not be mapped.
    """

    def __init__(
        self,
        number: int,
        layout: BarLayout,
        info: RegionInfo,
        server: Server,
        kept: Sequence[tuple[int, int]],
    ) -> None:
        self.layout = layout
        self.remote = RemoteFile(server, number, info, layout.size)
        RegisterBlock.__init__(self, self.remote)
        self.number = number
        self.memories: list[Memory] = []
        self.memory_fd = -1
        self._base = 0
        self._areas = list(_without(info.areas, kept))

    def map(self, file: RegionFile) -> None:
        """Map what can be mapped; the descriptor is the BAR's from now on."""
        self.memory_fd, self._base = file.fd, file.base
        for offset, size in self._areas:
            try:
                mapping = Mapping(file.fd, file.base + offset, size)
            except (ValueError, OSError, OverflowError) as error:
                log.info("memory at %#x of BAR %d is not mapped: %s", offset, self.number, error)
                continue
            memory = RemoteMemory(offset, size, mapping)
            self.file.add_region("memory", offset, size, memory)
            self.memories.append(memory)

    def unmap(self) -> None:
        """The server has gone, and its memory with it, for those as well who hold views of it."""
        self.remote.forget_memory()
        for memory in self.memories:
            if isinstance(memory, RemoteMemory):
                memory.mapping.revoke()
        self.memories.clear()
        if self.memory_fd >= 0:
            os.close(self.memory_fd)
            self.memory_fd = -1

    def shared(self) -> list[SharedRange]:
        """What a bus may map."""
        return [
            SharedRange(self.number, m.offset, m.size, self.memory_fd, self._base + m.offset)
            for m in self.memories
            if m.offset % PAGE == 0 and m.size % PAGE == 0
        ]


def _without(
    areas: Iterable[tuple[int, int]], kept: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The areas, but for the pages that hold what is kept."""
    for start, size in areas:
        end = start + size
        for at, length in sorted(kept):
            first, last = at // PAGE * PAGE, -(-(at + length) // PAGE) * PAGE
            if last <= start or first >= end:
                continue
            if start < first:
                yield start, first - start
            start = last
        if start < end:
            yield start, end - start
