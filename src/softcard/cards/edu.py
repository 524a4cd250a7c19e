"""QEMU's `edu` device (QEMU documentation, "EDU device"): a card for learning to write drivers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from softcard import (
    RO,
    W1S,
    WO,
    Bar,
    Card,
    DmaError,
    Field,
    Memory,
    Msi,
    Register,
    ResetKind,
    run,
)

WORD = 0xFFFFFFFF
FACTORIAL_INTERRUPT, DMA_INTERRUPT = 0x001, 0x100
BUFFER, BUFFER_SIZE = 0x40000, 4096
# The data sheet gives no times. These let a driver see the busy bits.
FACTORIAL_SECONDS, DMA_SECONDS = 1e-3, 100e-6
# 34! is the first one that is divisible by 2**32.
FIRST_ZERO_FACTORIAL = 34


class Status(Register):
    """What the factorial unit does."""

    computing = Field(0, access=RO)
    interrupt_when_done = Field(7)


class DmaCommand(Register):
    """Starts a transfer; `start` stays set until it has ended."""

    start = Field(0, access=W1S)
    to_memory = Field(1)
    interrupt_when_done = Field(2)


class Work:
    """Something that takes a while, and can be brought to its end at once."""

    def __init__(self, card: Card, seconds: float, call: Callable[..., None], *args: int) -> None:
        self._call = partial(call, *args)
        self._timer = card.after(seconds, self._call)

    def cancel(self) -> None:
        """It never ends."""
        self._timer.cancel()

    def finish(self) -> None:
        """It ends now."""
        self._timer.cancel()
        self._call()


class Edu(Card):
    """A register that inverts, a factorial unit, interrupts, and a DMA engine with a buffer.

    A driver acknowledges each interrupt, with MSI as well.

    Args:
        dma_mask: the address bits that the DMA engine drives; the others are zero on the bus.
    """

    vendor_id, device_id, revision_id = 0x1234, 0x11E8, 0x10
    interrupt_pin = 1
    migratable = True
    msi = Msi(masking=False)

    class bar0(Bar, size=1 << 20):
        identification = Register(0x00, access=RO, reset=0x010000ED)
        liveness = Register(0x04)
        factorial = Register(0x08)
        status = Status(0x20)
        interrupt_status = Register(0x24, access=RO)
        interrupt_raise = Register(0x60, access=WO)
        interrupt_acknowledge = Register(0x64, access=WO)
        dma_source = Register(0x80, width=64)
        dma_destination = Register(0x88, width=64)
        dma_count = Register(0x90, width=64)
        dma_command = DmaCommand(0x98, width=64)
        buffer = Memory(BUFFER, BUFFER_SIZE)

    def __init__(self, *, dma_mask: int = (1 << 28) - 1) -> None:
        super().__init__()
        self.dma_mask = dma_mask
        self.computation: Work | None = None
        self.transfer: Work | None = None

    def on_reset(self, kind: ResetKind) -> None:
        """Stop what is under way."""
        for work in (self.computation, self.transfer):
            if work is not None:
                work.cancel()
        self.computation = self.transfer = None

    def on_suspend(self) -> None:
        """Finish what is under way, so that the registers tell everything."""
        for work in (self.computation, self.transfer):
            if work is not None:
                work.finish()

    @bar0.liveness.on_write
    def invert(self, value: int) -> None:
        """The register reads as the inverse of what was written."""
        self.bar0.liveness.value = value ^ WORD

    # Factorial.

    @bar0.factorial.on_write
    def start_factorial(self, value: int) -> None:
        """Compute the factorial of the value, unless one is being computed."""
        if self.computation is None:
            self.bar0.status.computing = 1
            self.computation = Work(self, FACTORIAL_SECONDS, self.finish_factorial, value)

    def finish_factorial(self, value: int) -> None:
        """Put the result, modulo 2**32, in place of the value."""
        self.computation = None
        result = math.factorial(value) if value < FIRST_ZERO_FACTORIAL else 0
        self.bar0.factorial.value = result & WORD
        self.bar0.status.computing = 0
        if self.bar0.status.interrupt_when_done:
            self.raise_interrupt(FACTORIAL_INTERRUPT)

    # Interrupts.

    @bar0.interrupt_raise.on_write
    def raise_interrupt(self, value: int) -> None:
        """Add the value to the interrupt status, and interrupt."""
        self.bar0.interrupt_status.value |= value
        if self.bar0.interrupt_status.value:
            self.interrupt()

    @bar0.interrupt_acknowledge.on_write
    def acknowledge(self, value: int) -> None:
        """Take the value out of the interrupt status; INTx is released when nothing is left."""
        self.bar0.interrupt_status.value &= ~value
        if not self.bar0.interrupt_status.value:
            self.deassert()

    # DMA.

    @bar0.dma_command.on_write
    def start_dma(self, value: int) -> None:
        """Transfer what the registers say now, unless a transfer is under way."""
        if self.bar0.dma_command.start and self.transfer is None:
            self.transfer = Work(
                self, DMA_SECONDS, self.finish_dma, self.bar0.dma_command.value,
                self.bar0.dma_source.value, self.bar0.dma_destination.value,
                self.bar0.dma_count.value,
            )  # fmt: skip

    def finish_dma(self, command: int, source: int, destination: int, count: int) -> None:
        """Copy between memory and buffer; the end is signalled whether it went well or not."""
        self.transfer = None
        try:
            if command & DmaCommand.to_memory.mask:
                self.dma.write(destination & self.dma_mask, self.part_of_buffer(source, count))
            else:
                target = self.part_of_buffer(destination, count)
                target[:] = self.dma.read(source & self.dma_mask, count)
        finally:
            self.bar0.dma_command.start = 0
            if command & DmaCommand.interrupt_when_done.mask:
                self.raise_interrupt(DMA_INTERRUPT)

    def part_of_buffer(self, address: int, count: int) -> memoryview:
        """`count` bytes at `address` in the card's own address space."""
        start = address - BUFFER
        if start < 0 or start + count > BUFFER_SIZE:
            raise DmaError(
                address, count, f"the buffer has {BUFFER_SIZE} bytes from {BUFFER:#x} on"
            )
        return self.bar0.buffer.view[start : start + count]


run(Edu)
