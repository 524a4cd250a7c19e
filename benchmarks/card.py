"""The card that the benchmark's kernel module measures."""

from __future__ import annotations

from softcard import Bar, Card, Memory, MsiX, Register

DMA_SIZE = 1 << 20
TO_CARD, TO_HOST = 1, 2


class BenchCard(Card):
    """A register without a hook, one with, a doorbell that interrupts, and a DMA engine."""

    vendor_id, device_id = 0x1DED, 0x0BEC
    msix = MsiX(vectors=1, table=(0, 0x800), pba=(0, 0xC00))

    class bar0(Bar, size=4096):
        plain = Register(0x00)
        hooked = Register(0x04)
        doorbell = Register(0x08)
        dma_address = Register(0x10, width=64)
        dma_length = Register(0x18)
        dma_command = Register(0x1C)

    class bar2(Bar, size=DMA_SIZE, bits=64, prefetchable=True):
        memory = Memory(0, DMA_SIZE)

    @bar0.hooked.on_read
    def answer(self) -> int:
        """The least that a hook can do."""
        return 0x5A5A5A5A

    @bar0.doorbell.on_write
    def ring(self, _value: int) -> None:
        """Interrupt at once."""
        self.interrupt()

    @bar0.dma_command.on_write
    def transfer(self, command: int) -> None:
        """Copy the whole length at once, and interrupt."""
        length = self.bar0.dma_length.value
        theirs = self.dma.map(self.bar0.dma_address.value, length)
        ours = self.bar2.memory.view[:length]
        if command == TO_CARD:
            ours[:] = theirs
        else:
            theirs[:] = ours
        self.interrupt()
