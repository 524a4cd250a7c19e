"""The simulated bus: a root complex in the same process, driven from Python, with no kernel.

It does what firmware and a driver do: enumerates, sizes and places BARs, allocates DMA memory,
programs MSI-X, MSI or INTx, reads and writes. Time is virtual: it passes only in `run_for` and
`run_until`.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Self

from softcard.errors import DmaError, PlugError
from softcard.model.atomic import apply_atomic
from softcard.model.card import Card
from softcard.model.endpoint import HandlerError
from softcard.model.function import Function
from softcard.model.link import (
    SEGMENT,
    TO_BUS,
    AtomicOp,
    LinkFeatures,
    ResetKind,
    all_ones,
)
from softcard.model.loop import CardLoop
from softcard.pcie.config import BAR_COUNT

FEATURES = LinkFeatures(bus="simulated")

COMMAND, BAR0 = 0x04, 0x10
MEMORY_AND_BUS_MASTER = 0x06
CAPABILITIES_POINTER = 0x34
MAX_CAPABILITIES = 48
MSI_ID, MSIX_ID = 0x05, 0x11
MESSAGE_ADDRESS = 0xFEE00000
WINDOW_32, WINDOW_64 = 0x80000000, 0x40_0000_0000
DMA_BASE, DMA_BASE_LOW = 0x1_0000_0000, 0x10_0000
PAGE = 4096
WINDOW = 1 << 24


@dataclass(frozen=True)
class DmaBuffer:
    """Memory that a test has mapped for DMA: `view` is its content, at bus address `address`;
    `announced` where cards were told of it."""

    address: int
    view: memoryview
    file_offset: int = 0
    announced: bool = True


class _MemoryFile:
    """Zeroed memory in one file, so that a card in another process can map it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("softcard-simulated", os.MFD_CLOEXEC)
        self._windows_end = self._next = 0
        self._window = memoryview(b"")

    def __del__(self) -> None:
        os.close(self.fd)

    def allocate(self, size: int) -> tuple[memoryview, int]:
        """Whole pages, and their offset in the file."""
        room = -(-size // PAGE) * PAGE
        if self._next + room > self._windows_end:
            # Each mapping costs a descriptor; memory that is not touched costs nothing.
            length = max(room, WINDOW)
            self._next, self._windows_end = self._windows_end, self._windows_end + length
            os.ftruncate(self.fd, self._windows_end)
            self._window = memoryview(mmap.mmap(self.fd, length, offset=self._next))
        start = self._next - (self._windows_end - len(self._window))
        offset, self._next = self._next, self._next + room
        return self._window[start : start + size], offset


class VirtualLoop(CardLoop):
    """A card's loop in virtual time."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._timers: list[float] = []
        super().__init__()

    def time(self) -> float:
        """Seconds of virtual time since the bus was made."""
        return self.now

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        heapq.heappush(self._timers, when)
        return super().call_at(when, callback, *args, context=context)

    def step(self) -> None:
        """Run what is due, and poll, without waiting."""
        self.call_soon(self.stop)
        self.run_forever()

    def next_timer(self) -> float | None:
        """When the next timer is due."""
        while self._timers and self._timers[0] <= self.now:
            heapq.heappop(self._timers)
        return self._timers[0] if self._timers else None


class SimulatedBus:
    """A root complex with as many slots as needed.

    Args:
        strict: raise a card's exceptions and DMA faults in the test, from the access that caused
            them. Otherwise they are only collected, in `Endpoint.errors` and `faults`.

    Attributes:
        faults: every DMA that reached memory which the test had not mapped.
        calls: how many calls of cards' code are under way.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self.faults: list[DmaError] = []
        self._slots: list[SimulatedSlot] = []
        self._buffers: list[DmaBuffer] = []
        self._file: _MemoryFile | None = None
        self._next_dma, self._next_dma_low = DMA_BASE, DMA_BASE_LOW
        self._unseen_faults: list[DmaError] = []
        self._thread = threading.get_ident()
        self.calls = 0
        self._now = 0.0
        self._next_bar = {32: WINDOW_32, 64: WINDOW_64}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for slot in self._slots:
                stack.callback(slot.unplug)

    def plug(self, card: Card) -> SimulatedSlot:
        """Plug a card in, power it on, enumerate it and enable memory access and DMA.

        Raises:
            PlugError: the card is plugged in already.
        """
        card.enter_slot(FEATURES)
        slot = SimulatedSlot(self, card)
        self._slots.append(slot)
        try:
            slot.reset(ResetKind.POWER_ON)
            for device in slot.devices:
                for buffer in [buffer for buffer in self._buffers if buffer.announced]:
                    device.link.memory_added(buffer.address, len(buffer.view))
                device.enumerate()
        except BaseException:
            slot.unplug()
            raise
        return slot

    # Memory.

    def alloc(self, size: int, *, address_bits: int = 64, announced: bool = True) -> DmaBuffer:
        """Map `size` bytes of zeroed memory for DMA, page-aligned; a gap follows it.

        Args:
            size: bytes.
            address_bits: what the card can address, as a driver says with its DMA mask; memory
                is above 4 GiB where it can be.
            announced: tell cards of it. Not all of a driver's memory is announced by a bus that
                shares none but moves memory for its cards.

        Raises:
            MemoryError: no addresses are left below that limit.
        """
        room = -(-size // PAGE) * PAGE + PAGE
        if address_bits > DMA_BASE.bit_length():
            address, self._next_dma = self._next_dma, self._next_dma + room
        else:
            address, self._next_dma_low = self._next_dma_low, self._next_dma_low + room
            if address + size > 1 << address_bits:
                raise MemoryError(f"no {size} bytes are left below address 1 << {address_bits}")
        if self._file is None:
            self._file = _MemoryFile()
        buffer = DmaBuffer(address, *self._file.allocate(size), announced)
        self._buffers.append(buffer)
        for slot in self._slots if announced else ():
            with slot.calling:
                for device in slot.devices:
                    device.link.memory_added(address, size)
        return buffer

    def free(self, buffer: DmaBuffer) -> None:
        """Unmap memory; a DMA to it is a fault from now on."""
        self._buffers.remove(buffer)
        for slot in self._slots if buffer.announced else ():
            with slot.calling:
                for device in slot.devices:
                    device.link.memory_removed(buffer.address, len(buffer.view))

    def memory(self, address: int, length: int) -> memoryview:
        """The mapped memory at a bus address; raises `DmaError` where there is none."""
        buffer = self._find(address, length)
        if buffer is not None:
            start = address - buffer.address
            return buffer.view[start : start + length]
        fault = DmaError(address, length, "the test has not mapped this memory")
        self.faults.append(fault)
        # Where the test calls the card's code itself, it sees the exception anyway.
        if self.calls or threading.get_ident() != self._thread:
            self._unseen_faults.append(fault)
        raise fault

    def announced(self, address: int, length: int) -> bool:
        """Whether cards were told of this memory."""
        buffer = self._find(address, length)
        return buffer is not None and buffer.announced

    def memory_file(self, address: int, length: int) -> tuple[int, int] | None:
        """The file that holds mapped memory, and where; see `Upstream.dma_file`."""
        buffer = self._find(address, length)
        if buffer is None or self._file is None:
            return None
        return self._file.fd, buffer.file_offset + address - buffer.address

    def _find(self, address: int, length: int) -> DmaBuffer | None:
        for buffer in self._buffers:
            start = address - buffer.address
            if 0 <= start and start + length <= len(buffer.view):
                return buffer
        return None

    def place_bar(self, size: int, bits: int) -> int:
        """A free, naturally aligned address for a BAR."""
        address = -(-self._next_bar[bits] // size) * size
        self._next_bar[bits] = address + size
        return address

    # Time.

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass: timers, descriptors, coroutines and pollers of all cards run."""
        end = self._now + seconds
        while True:
            self._step()
            upcoming = [t for s in self._slots if (t := s.loop.next_timer()) is not None]
            self._now = min([end, *upcoming])
            for slot in self._slots:
                slot.loop.now = self._now
            if self._now >= end:
                break
        self._step()

    def run_until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Let time pass until `condition()` is true.

        Work in other threads is waited for in real time; `timeout` is in virtual seconds.

        Raises:
            TimeoutError: it has not become true in time.
        """
        end = self._now + timeout
        while not condition():
            if self._now >= end:
                raise TimeoutError(f"the condition is still false after {timeout} s")
            self.run_for(1e-3)
            for slot in self._slots:
                slot.loop.run_until_complete(asyncio.to_thread(lambda: None))

    @property
    def now(self) -> float:
        """Seconds of virtual time since the bus was made."""
        return self._now

    def _step(self) -> None:
        for slot in self._slots:
            with slot.calling:
                slot.loop.step()

    def settle(self, slot: SimulatedSlot) -> None:
        """Raise what went wrong since the last call, if the bus is strict."""
        new = [error.exception for error in slot.new_errors()]
        new += self._unseen_faults
        self._unseen_faults = []
        if new and self.strict:
            raise new[0]

    def remove(self, slot: SimulatedSlot) -> None:
        """Forget a slot."""
        if slot not in self._slots:
            raise PlugError("the slot is empty: its card is unplugged already")
        self._slots.remove(slot)


class _Calling:
    """The time during which the bus calls a card's code.

    At its end, what the card deferred is done, and what went wrong is raised.
    """

    def __init__(self, bus: SimulatedBus, slot: SimulatedSlot) -> None:
        self._bus = bus
        self._slot = slot

    def __enter__(self) -> None:
        self._bus.calls += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bus.calls == 1 and not self._slot.loop.is_closed():
            self._slot.loop.run_deferred()
        self._bus.calls -= 1
        if kind is None and not self._bus.calls:
            self._bus.settle(self._slot)


class SimulatedSlot:
    """One card on the bus, with a device for each of its functions."""

    def __init__(self, bus: SimulatedBus, card: Card) -> None:
        self.bus = bus
        self.card = card
        self.loop = VirtualLoop(bus.now)
        self.calling = _Calling(bus, self)
        self.devices = [SimulatedDevice(bus, self, function) for function in card.functions]
        card.plugged(self.loop, self.devices)

    def __getitem__(self, function: int) -> SimulatedDevice:
        return self.devices[function]

    def reset(self, kind: ResetKind) -> None:
        """Reset every function; a driver then finds memory access and DMA disabled."""
        with self.calling:
            for device in self.devices:
                device.interrupts.clear()
                device.link.reset(kind)

    def unplug(self) -> None:
        """Take the card out; accesses to it give all-ones from now on."""
        self.bus.remove(self)
        with self.calling:
            self.card.unplugged()
            self.loop.shut_down()
            self.card.leave_slot()
            for device in self.devices:
                device.present = False

    def new_errors(self) -> list[HandlerError]:
        """The errors of the card's code since the last call."""
        return [error for device in self.devices for error in device.new_errors()]


class SimulatedDevice:
    """One function as its driver sees it, and the upstream half of its link.

    Attributes:
        interrupts: vectors that were signalled by MSI or MSI-X, in order; a test may clear it.
        intx_asserted: whether the INTx line is asserted.
        link: the downstream half of the link, with the interposers on it.
        endpoint: its end at the function, which has the errors of the card's code.
    """

    features = FEATURES

    def __init__(self, bus: SimulatedBus, slot: SimulatedSlot, function: Function) -> None:
        self.bus = bus
        self.slot = slot
        self.endpoint = function.endpoint
        self.link = function.link
        self.present = True
        self._seen_errors = function.endpoint.error_count
        self.interrupts: list[int] = []
        self.intx_asserted = False

    # What a driver does.

    def enumerate(self) -> None:
        """Size and place every BAR, then enable memory access and bus mastering."""
        number = 0
        while number < BAR_COUNT:
            number += self._place(number)
        self.config_write(COMMAND, MEMORY_AND_BUS_MASTER, 2)

    def _place(self, number: int) -> int:
        """Returns how many of the six places the BAR takes."""
        at = BAR0 + 4 * number
        self.config_write(at, 0xFFFFFFFF)
        mask = self.config_read(at)
        wide = mask & 0b110 == 0b100
        if wide:
            self.config_write(at + 4, 0xFFFFFFFF)
            mask |= self.config_read(at + 4) << 32
        size = (~(mask & ~0xF) + 1) & (all_ones(8) if wide else all_ones(4))
        if mask & ~0xF:
            address = self.bus.place_bar(size, 64 if wide else 32)
            self.config_write(at, address & 0xFFFFFFFF)
            if wide:
                self.config_write(at + 4, address >> 32)
        return 2 if wide else 1

    def config_read(self, offset: int, size: int = 4) -> int:
        """Configuration read of 1, 2 or 4 bytes."""
        return self.link.config_read(offset, size) if self.present else all_ones(size)

    def config_write(self, offset: int, value: int, size: int = 4) -> None:
        """Configuration write of 1, 2 or 4 bytes."""
        if self.present:
            with self.slot.calling:
                self.link.config_write(offset, size, value)

    def read(self, bar: int, offset: int, size: int = 4) -> int:
        """Memory read of 1 to 8 bytes."""
        if not self.present:
            return all_ones(size)
        with self.slot.calling:
            return self.link.read(bar, offset, size)

    def write(self, bar: int, offset: int, value: int, size: int = 4) -> None:
        """Memory write of 1 to 8 bytes."""
        if self.present:
            with self.slot.calling:
                self.link.write(bar, offset, size, value)

    def read_block(self, bar: int, offset: int, length: int) -> bytes:
        """Memory read of any length."""
        if not self.present:
            return b"\xff" * length
        with self.slot.calling:
            return self.link.read_block(bar, offset, length)

    def write_block(self, bar: int, offset: int, data: bytes) -> None:
        """Memory write of any length."""
        if self.present:
            with self.slot.calling:
                self.link.write_block(bar, offset, data)

    def find_capability(self, capability_id: int) -> int:
        """Offset of a standard capability, 0 when the function has none of this id."""
        at = self.config_read(CAPABILITIES_POINTER, 1)
        for _ in range(MAX_CAPABILITIES):
            if not at or self.config_read(at, 1) == capability_id:
                return at
            at = self.config_read(at + 1, 1)
        return 0

    def enable_msix(self) -> None:
        """Program every vector of the table, unmasked, and enable MSI-X."""
        at = self._required(MSIX_ID, "MSI-X")
        control = self.config_read(at + 2, 2)
        table = self.config_read(at + 4)
        for vector in range((control & 0x7FF) + 1):
            entry = (table & ~7) + 16 * vector
            for index, value in enumerate((MESSAGE_ADDRESS, 0, vector, 0)):
                self.write(table & 7, entry + 4 * index, value)
        self.config_write(at + 2, control & 0x3FFF | 0x8000, 2)

    def enable_msi(self, vectors: int = 1) -> None:
        """Program MSI with this many vectors, a power of two, and enable it."""
        at = self._required(MSI_ID, "MSI")
        control = self.config_read(at + 2, 2)
        self.config_write(at + 4, MESSAGE_ADDRESS)
        data = at + (12 if control & 0x80 else 8)
        if control & 0x80:
            self.config_write(at + 8, 0)
        self.config_write(data, 0, 2)
        granted = (vectors.bit_length() - 1) << 4
        self.config_write(at + 2, control & ~0x70 | granted | 1, 2)

    def _required(self, capability_id: int, name: str) -> int:
        at = self.find_capability(capability_id)
        if not at:
            raise PlugError(f"the card has no {name} capability")
        return at

    def new_errors(self) -> list[HandlerError]:
        """The errors of this function's code since the last call; the last ones of very many."""
        count = self.endpoint.error_count - self._seen_errors
        self._seen_errors = self.endpoint.error_count
        return list(self.endpoint.errors)[-count:] if count else []

    def take_interrupts(self) -> list[int]:
        """The vectors signalled since the last call."""
        taken, self.interrupts = self.interrupts, []
        return taken

    # The upstream half of the link.

    def dma_read(self, address: int, length: int) -> bytes:
        """See `Upstream.dma_read`."""
        return bytes(self.bus.memory(address, length))

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """See `Upstream.dma_write`."""
        self.bus.memory(address, len(data))[:] = data

    def dma_read_many(self, segments: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Upstream.dma_read_many`."""
        return [self.dma_read(address, length) for address, length in segments]

    def dma_write_many(self, segments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """See `Upstream.dma_write_many`."""
        for address, data in segments:
            self.dma_write(address, data)

    def dma_move(self, segments: int, count: int) -> None:
        """See `Upstream.dma_move`."""
        for index in range(count):
            segment = ctypes.string_at(segments + index * SEGMENT.size, SEGMENT.size)
            address, place, length, flags = SEGMENT.unpack(segment)
            own = memoryview((ctypes.c_char * length).from_address(place)).cast("B")
            try:
                theirs = self.bus.memory(address, length)
            except DmaError as error:
                error.done = index
                raise
            if flags == TO_BUS:
                theirs[:] = own
            else:
                own[:] = theirs

    def dma_map(self, address: int, length: int) -> memoryview:
        """See `Upstream.dma_map`."""
        if self.features.moves and not self.bus.announced(address, length):
            raise DmaError(address, length, "the test has not announced this memory")
        return self.bus.memory(address, length)

    def dma_file(self, address: int, length: int) -> tuple[int, int] | None:
        """See `Upstream.dma_file`."""
        return self.bus.memory_file(address, length) if self.features.shared_memory else None

    def dma_atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        """See `Upstream.dma_atomic`."""
        return apply_atomic(self.bus.memory(address, size), operation, operand, compare)

    def message(self, address: int, data: int) -> None:
        """See `Upstream.message`: outside the interrupt window it is a plain write."""
        if address == MESSAGE_ADDRESS:
            self.interrupts.append(data)
        else:
            self.dma_write(address, data.to_bytes(4, "little"))

    def vector(self, vector: int) -> None:
        """Not used: the function keeps its own MSI-X table here."""
        raise NotImplementedError

    def intx(self, asserted: bool) -> None:
        """See `Upstream.intx`."""
        self.intx_asserted = asserted

    def link_down(self) -> None:
        """See `Upstream.link_down`: nobody answers any more, and `unplug` empties the slot."""
        for device in self.slot.devices:
            device.present = False
