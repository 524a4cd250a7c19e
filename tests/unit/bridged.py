"""A card that a vfio-user server of ours serves, as a card on another bus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softcard import Bar, Card, Memory, Msi, MsiX, PciExpress, PowerManagement, Register
from softcard.bridge.vfio_user import VfioUserCard
from softcard.bus.simulated import SimulatedBus, SimulatedDevice
from softcard.bus.vfio_user import VfioUserServer
from softcard.pcie.register import RO

TABLE, PBA, MEMORY = 0x1000, 0x2000, 0x3000
VECTORS = 100
SIGNAL, ASSERT, RELEASE, ADDRESS, SUM, COUNT, RESETS = 0x00, 0x04, 0x08, 0x10, 0x18, 0x20, 0x24


class Signals(Card):
    """Does one thing for each register."""

    vendor_id, device_id = 0x1DED, 0x5151
    revision_id, class_code = 0x42, 0x058000
    subsystem_vendor_id, subsystem_id = 0x1DED, 0x1234
    interrupt_pin = 1
    msix = MsiX(vectors=VECTORS, table=(0, TABLE), pba=(0, PBA))
    msi = Msi(vectors=4)
    power = PowerManagement(no_soft_reset=False)
    express = PciExpress()

    class bar0(Bar, size=0x4000):
        signal = Register(SIGNAL)
        assert_line = Register(ASSERT)
        release_line = Register(RELEASE)
        address = Register(ADDRESS, width=64)
        sum = Register(SUM, access=RO)
        count = Register(COUNT)
        resets = Register(RESETS, access=RO)
        memory = Memory(MEMORY, 0x1000)

    class bar2(Bar, size=1 << 20, bits=64, prefetchable=True):
        first = Register(0)
        last = Register((1 << 20) - 4)

    def __init__(self) -> None:
        self.reset_count = 0
        super().__init__()

    def on_reset(self, kind: object) -> None:
        self.reset_count += 1
        self.bar0.resets.value = self.reset_count

    @bar0.signal.on_write
    def do_signal(self, value: int) -> None:
        self.interrupt(value)

    @bar0.assert_line.on_write
    def do_assert(self, value: int) -> None:
        self.interrupt(value)

    @bar0.release_line.on_write
    def do_release(self, value: int) -> None:
        self.deassert(value)

    @bar0.sum.on_read
    def do_sum(self) -> int:
        """DMA while the driver waits for the register."""
        return sum(self.dma.read(self.bar0.address.value, 256))

    @bar0.count.on_write
    def do_count(self, value: int) -> None:
        self.dma.write(self.bar0.address.value, bytes(range(value)))


@contextmanager
def bridged(
    card: Card, folder: Path, bus: SimulatedBus
) -> Iterator[tuple[SimulatedDevice, VfioUserServer]]:
    """The card on `bus` by way of a server at a socket in `folder`."""
    server = VfioUserServer(card, folder / "card")
    try:
        yield bus.plug(VfioUserCard(server.paths[0]))[0], server
    finally:
        server.stop()
