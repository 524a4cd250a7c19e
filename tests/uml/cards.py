"""Cards for the tests with a real kernel."""

from __future__ import annotations

import threading
import time

from softcard import (
    W1C,
    AdvancedErrorReporting,
    Bar,
    Card,
    DeviceSerialNumber,
    Memory,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    RawCapability,
    RawExtendedCapability,
    Register,
    VendorSpecific,
    VendorSpecificExtended,
)

VECTORS = 4
MEMORY_SIZE = 1 << 20


class ProbeCard(Card):
    """What modules/softcard_probe drives: interrupts of every kind, and memory."""

    vendor_id, device_id = 0x1DED, 0x0F00
    interrupt_pin = 1
    msi = Msi(vectors=1)
    msix = MsiX(vectors=VECTORS, table=(0, 0x800), pba=(0, 0xC00))

    class bar0(Bar, size=4096):
        cause = Register(0x00, access=W1C)
        ring = Register(0x04)
        stuck = Register(0x08)
        broken = Register(0x0C)
        farewell = Register(0x10)

    class bar2(Bar, size=MEMORY_SIZE, bits=64, prefetchable=True):
        memory = Memory(0, MEMORY_SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.rung = 0
        self._lock = threading.Lock()

    def signal(self, vector: int) -> None:
        """Interrupt, from any thread."""
        with self._lock:
            self.bar0.cause.value |= 1 << vector
            self.interrupt(vector)

    @bar0.cause.on_write
    def clear(self, value: int) -> None:
        with self._lock:
            for vector in range(self.interrupts.vectors):
                if not self.bar0.cause.value >> vector & 1:
                    self.deassert(vector)

    @bar0.ring.on_write
    def ring_often(self, count: int) -> None:
        for _ in range(count):
            self.signal(self.rung % self.interrupts.vectors)
            self.rung += 1

    @bar0.stuck.on_read
    def never_answer(self) -> int:
        self.entered.set()
        self.gate.wait(60)
        return 0

    @bar0.broken.on_read
    def fail(self) -> int:
        raise RuntimeError("broken on purpose")


class EveryCapability(Card):
    """Has one of each capability that softcard knows."""

    vendor_id, device_id = 0x1DED, 0x0F01
    revision_id, class_code = 0x12, 0x058000
    subsystem_vendor_id, subsystem_id = 0x1DED, 0x0042
    interrupt_pin = 1
    power = PowerManagement(d1=True, d2=True, pme=(0, 3))
    msi = Msi(vectors=32)
    msix = MsiX(vectors=64, table=(2, 0), pba=(2, 0x1000))
    express = PciExpress(link_speed=16, link_width=8, max_payload=512)
    vendor = VendorSpecific(b"softcard", bytes(8))
    raw = RawCapability(0x15, bytes(6))
    errors = AdvancedErrorReporting()
    serial = DeviceSerialNumber(0x0011_22FF_FE33_4455)
    vsec = VendorSpecificExtended(0x1234, 2, b"vendor's own")
    raw_extended = RawExtendedCapability(0x0018, 1, bytes(4))

    class bar0(Bar, size=1 << 16, bits=64, prefetchable=True):
        memory = Memory(0, 1 << 16)

    class bar2(Bar, size=8192):
        nothing = Register(0x1800)


class Slow(Card):
    """Answers late, but in time."""

    vendor_id, device_id = 0x1DED, 0x0F02

    class bar0(Bar, size=4096):
        late = Register(0)

    @bar0.late.on_read
    def answer_late(self) -> int:
        time.sleep(0.05)
        return 0x1A7E
