"""The link: what joins a function and its slot.

Plain calls in both directions and nothing else. A bus calls the `Downstream` half, which a
function, an interposer or a bridge card implements; a function calls the `Upstream` half, which a
bus implements. Downstream calls of one card come one at a time, in order, on the bus's thread for
that card. Upstream calls may come from any thread.

Offsets and addresses are in bytes, values little-endian integers.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


class ResetKind(enum.Enum):
    """How a function is reset (PCI Express Base 6.0, section 6.6)."""

    POWER_ON = "power-on reset"
    HOT = "hot reset"
    FLR = "function level reset"


class PowerState(enum.IntEnum):
    """Device power states, numbered as in PMCSR (section 5.3.1)."""

    D0 = 0
    D1 = 1
    D2 = 2
    D3_HOT = 3


class AtomicOp(enum.Enum):
    """AtomicOp requests (section 6.15)."""

    FETCH_ADD = "fetch and add"
    SWAP = "swap"
    COMPARE_AND_SWAP = "compare and swap"


SEGMENT = struct.Struct("<2Q2I")
"""A segment of `Upstream.dma_move`: bus address, address in this process, bytes, and `TO_BUS` where
they go to the bus address, or 0 where they come from there."""
TO_BUS = 1
MAX_SEGMENTS = 65536
"""Segments of one call."""


@dataclass(frozen=True, slots=True)
class LinkFeatures:
    """What a bus can do.

    Attributes:
        bus: the bus's name, for messages.
        bus_owns_msix: the bus keeps the messages of MSI and MSI-X, wants vector numbers
            (`Upstream.vector`) and says which it can deliver (`Downstream.vectors_wired`);
            otherwise it wants the messages of the function's own table (`Upstream.message`).
        max_functions: functions of one card.
        max_bar_size: bytes of the largest BAR that the bus can place.
        shared_memory: `Upstream.dma_map` works.
        shared_ranges: the bus maps a BAR's plain memory, so that accesses to it make no call.
        announces_memory: `Downstream.memory_added` tells of all memory that DMA can reach;
            otherwise the driver's buffers come and go untold.
        moves: `Upstream.dma_move` works. `Upstream.dma_map` then does for memory that
            `Downstream.memory_added` names, which is where drivers keep rings and lists, even
            where `shared_memory` is not set.
    """

    bus: str
    bus_owns_msix: bool = False
    max_functions: int = 8
    max_bar_size: int = 1 << 62
    shared_memory: bool = True
    shared_ranges: bool = False
    announces_memory: bool = True
    moves: bool = False


@dataclass(frozen=True, slots=True)
class SharedRange:
    """Plain memory of a BAR, which a bus may map: `size` bytes at `offset` of BAR `bar` are those
    at `fd_offset` of the file `fd`, which stays the card's. Where it is a `shadow`, only reads may
    go there, and writes have to come to the function."""

    bar: int
    offset: int
    size: int
    fd: int
    fd_offset: int
    shadow: bool = False


class Upstream(Protocol):
    """What a function asks of its bus."""

    @property
    def features(self) -> LinkFeatures:
        """What the bus can do. Only `shared_memory` may change while the card is plugged in, before
        the memory that it is about is added."""

    def dma_read(self, address: int, length: int) -> bytes:
        """Memory read. Raises `DmaError` where the driver's side has not allowed it."""

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """Memory write. Raises `DmaError` where the driver's side has not allowed it."""

    def dma_read_many(self, segments: Sequence[tuple[int, int]]) -> list[bytes]:
        """Memory reads, each of an address and a length. Where memory is reached by messages, all
        of them are on their way before the first reply is waited for."""

    def dma_write_many(self, segments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """Memory writes in their order, each of data to an address; see `dma_read_many`."""

    def dma_move(self, segments: int, count: int) -> None:
        """Move memory by one call, with `count` segments at address `segments` of this process,
        each laid out as `SEGMENT`. Raises `DmaError`, whose `done` says how many were moved, where
        the next one is not allowed. Only where `LinkFeatures.moves` is set."""

    def dma_map(self, address: int, length: int) -> memoryview:
        """The memory itself, valid until `Downstream.memory_removed` names it or the card is
        unplugged. Raises `DmaError` where it is not allowed or the bus shares no memory."""

    def dma_file(self, address: int, length: int) -> tuple[int, int] | None:
        """The file that holds the memory, for a process that is to map it: a descriptor, which
        stays the bus's and is open until `Downstream.memory_removed` names the memory, and the
        offset of `address` in the file. None where the bus has no file for it."""

    def dma_atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        """An AtomicOp of 4 or 8 bytes, naturally aligned; returns the former value."""

    def message(self, address: int, data: int) -> None:
        """Send an MSI or MSI-X message: `data` (32 bits) to `address`."""

    def vector(self, vector: int) -> None:
        """Signal an MSI or MSI-X vector to a bus that keeps the messages itself."""

    def intx(self, asserted: bool) -> None:
        """Assert or release the function's INTx line."""

    def link_down(self) -> None:
        """The card has gone by itself, as a bridge card does with whom it asked: the bus treats it
        as pulled."""


class Downstream(Protocol):
    """What a bus asks of a function."""

    def connect(self, upstream: Upstream) -> None:
        """The function is plugged in, not yet reset; `upstream` may be called from now on."""

    def disconnect(self) -> None:
        """The function is unplugged or pulled; `upstream` may no longer be called."""

    def config_read(self, offset: int, size: int) -> int:
        """Configuration read of 1, 2 or 4 bytes."""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Configuration write of 1, 2 or 4 bytes."""

    def read(self, bar: int, offset: int, size: int) -> int:
        """Memory read of 1 to 8 bytes; all-ones where the function does not answer."""

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Memory write of 1 to 8 bytes."""

    def read_block(self, bar: int, offset: int, length: int) -> bytes:
        """Memory read of any length."""

    def write_block(self, bar: int, offset: int, data: bytes | memoryview) -> None:
        """Memory write of any length; `data` is valid during the call only."""

    def reset(self, kind: ResetKind) -> None:
        """Reset the function."""

    def vectors_wired(self, vectors: Collection[int]) -> None:
        """A bus that keeps the messages delivers these MSI or MSI-X vectors from now on, and no
        others."""

    def memory_added(self, address: int, size: int) -> None:
        """`size` bytes from bus address `address` are now reachable by DMA."""

    def memory_removed(self, address: int, size: int) -> None:
        """They no longer are: views from `dma_map` must not be used after this call returns."""

    def shared_ranges(self) -> Sequence[SharedRange]:
        """The plain memory of the BARs."""

    @property
    def migratable(self) -> bool:
        """Whether the four calls below work."""

    def suspend(self) -> None:
        """The function does no DMA, sends no interrupts and changes nothing until `resume`."""

    def resume(self) -> None:
        """It goes on."""

    def save_state(self) -> bytes:
        """The state of a suspended function."""

    def load_state(self, state: bytes) -> None:
        """Make a suspended function what another was. Raises `StateError`."""


def all_ones(size: int) -> int:
    """What a read of `size` bytes gives when nobody answers (section 2.3.2)."""
    return (1 << (8 * size)) - 1
