"""The card of the tutorial: it copies memory, and interrupts when it has."""

from __future__ import annotations

import asyncio

from softcard import (
    RO,
    W1C,
    W1S,
    Bar,
    Card,
    DmaError,
    Field,
    Msi,
    Register,
    ResetKind,
    run,
)
from softcard.model.options import Size


class Control(Register):
    """What the driver asks for."""

    start = Field(0, access=W1S)
    interrupt_enable = Field(1)


class Status(Register):
    """What has come of it."""

    done = Field(0, access=W1C)
    error = Field(1, access=W1C)


class Copier(Card):
    """Copies memory from one place to another.

    Args:
        rate: bytes that it copies in a second.
    """

    vendor_id, device_id = 0x1DED, 0xC0B1
    class_code = 0x088000
    msi = Msi()

    class bar0(Bar, size=4096):
        identification = Register(0x00, access=RO, reset=0xC0B1E001)
        control = Control(0x04)
        status = Status(0x08)
        source = Register(0x10, width=64)
        destination = Register(0x18, width=64)
        length = Register(0x20)

    def __init__(self, *, rate: Size = Size("100M")) -> None:  # noqa: B008
        super().__init__()
        self.rate = rate
        self.copy: asyncio.TimerHandle | None = None

    def on_reset(self, kind: ResetKind) -> None:
        """Forget a copy that has not ended."""
        if self.copy is not None:
            self.copy.cancel()
            self.copy = None

    @bar0.control.on_write
    def start(self, value: int) -> None:
        """Begin to copy, unless that is under way."""
        if self.bar0.control.start and self.copy is None:
            self.copy = self.after(self.bar0.length.value / self.rate, self.finish)

    def finish(self) -> None:
        """The time that the copy takes is over: do it, and say so."""
        self.copy = None
        try:
            data = self.dma.read(self.bar0.source.value, self.bar0.length.value)
            self.dma.write(self.bar0.destination.value, data)
        except DmaError:
            self.bar0.status.error = 1
            raise
        finally:
            self.bar0.control.start = 0
            self.bar0.status.done = 1
            if self.bar0.control.interrupt_enable:
                self.interrupt()


run(Copier)
