"""An interposer is a link that wraps a link: nothing else has to change for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from softcard import Bar, Card, DmaError, MsiX, Register, ResetKind
from softcard.bus.simulated import SimulatedBus, SimulatedDevice
from softcard.model.link import AtomicOp, Downstream, LinkFeatures, SharedRange, Upstream


class Watcher:
    """Both halves of a link around a real one; notes each call, and changes one kind of it."""

    def __init__(self, inner: Downstream) -> None:
        self.inner = inner
        self.seen: list[str] = []
        self.flip = 0
        self.lose_dma = False
        self._upstream: Upstream | None = None

    @property
    def upstream(self) -> Upstream:
        assert self._upstream is not None
        return self._upstream

    # Downstream.

    def connect(self, upstream: Upstream) -> None:
        self.seen.append("connect")
        self._upstream = upstream
        self.inner.connect(self)

    def disconnect(self) -> None:
        self.seen.append("disconnect")
        self.inner.disconnect()

    def config_read(self, offset: int, size: int) -> int:
        self.seen.append(f"config read {offset:#x}")
        return self.inner.config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(f"config write {offset:#x} {value:#x}")
        self.inner.config_write(offset, size, value)

    def read(self, bar: int, offset: int, size: int) -> int:
        value = self.inner.read(bar, offset, size)
        self.seen.append(f"read {bar} {offset:#x} {value:#x}")
        return value ^ self.flip

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.seen.append(f"write {bar} {offset:#x} {value:#x}")
        self.inner.write(bar, offset, size, value)

    def read_block(self, bar: int, offset: int, length: int) -> bytes:
        self.seen.append(f"read block {bar} {offset:#x} {length}")
        return self.inner.read_block(bar, offset, length)

    def write_block(self, bar: int, offset: int, data: bytes | memoryview) -> None:
        self.seen.append(f"write block {bar} {offset:#x} {bytes(data).hex()}")
        self.inner.write_block(bar, offset, data)

    def reset(self, kind: ResetKind) -> None:
        self.seen.append(kind.value)
        self.inner.reset(kind)

    def vectors_wired(self, vectors: Collection[int]) -> None:
        self.inner.vectors_wired(vectors)

    def memory_added(self, address: int, size: int) -> None:
        self.seen.append(f"added {size:#x}")
        self.inner.memory_added(address, size)

    def memory_removed(self, address: int, size: int) -> None:
        self.seen.append(f"removed {size:#x}")
        self.inner.memory_removed(address, size)

    def shared_ranges(self) -> Sequence[SharedRange]:
        # Memory that is shared could not be watched.
        return []

    @property
    def migratable(self) -> bool:
        return self.inner.migratable

    def suspend(self) -> None:
        self.inner.suspend()

    def resume(self) -> None:
        self.inner.resume()

    def save_state(self) -> bytes:
        return self.inner.save_state()

    def load_state(self, state: bytes) -> None:
        self.inner.load_state(state)

    # Upstream.

    @property
    def features(self) -> LinkFeatures:
        return self.upstream.features

    def dma_read(self, address: int, length: int) -> bytes:
        self.seen.append(f"dma read {length}")
        return self.upstream.dma_read(address, length)

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        self.seen.append(f"dma write {bytes(data).hex()}")
        if self.lose_dma:
            raise DmaError(address, len(data), "the interposer lost it")
        self.upstream.dma_write(address, data)

    def dma_read_many(self, segments: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.dma_read(address, length) for address, length in segments]

    def dma_move(self, segments: int, count: int) -> None:
        self.upstream.dma_move(segments, count)

    def dma_write_many(self, segments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        for address, data in segments:
            self.dma_write(address, data)

    def dma_map(self, address: int, length: int) -> memoryview:
        self.seen.append(f"dma map {length}")
        return self.upstream.dma_map(address, length)

    def dma_file(self, address: int, length: int) -> tuple[int, int] | None:
        # Memory that another process maps could not be watched.
        return None

    def dma_atomic(
        self, address: int, size: int, operation: AtomicOp, operand: int, compare: int
    ) -> int:
        self.seen.append(f"atomic {operation.value}")
        return self.upstream.dma_atomic(address, size, operation, operand, compare)

    def message(self, address: int, data: int) -> None:
        self.seen.append(f"message {data}")
        self.upstream.message(address, data)

    def vector(self, vector: int) -> None:
        self.upstream.vector(vector)

    def intx(self, asserted: bool) -> None:
        self.seen.append(f"INTx {asserted}")
        self.upstream.intx(asserted)

    def link_down(self) -> None:
        self.seen.append("link down")
        self.upstream.link_down()


class Echo(Card):
    """Answers a write with DMA and an interrupt."""

    vendor_id, device_id = 0x1DED, 0x0800
    interrupt_pin = 1
    msix = MsiX(vectors=2, table=(0, 0x800), pba=(0, 0xC00))

    class bar0(Bar, size=4096):
        address = Register(0x00, width=64)
        echo = Register(0x08)

    @bar0.echo.on_write
    def send(self, value: int) -> None:
        self.dma.write(self.bar0.address.value, value.to_bytes(4, "little"))
        self.interrupt(1)


@pytest.fixture
def card() -> Echo:
    return Echo()


@pytest.fixture
def watcher(card: Echo) -> Watcher:
    card.link = watcher = Watcher(card.link)
    return watcher


@pytest.fixture
def device(simulated_bus: SimulatedBus, card: Echo, watcher: Watcher) -> SimulatedDevice:
    return simulated_bus.plug(card)[0]


def test_it_sees_everything_in_both_directions_in_order(
    watcher: Watcher, device: SimulatedDevice
) -> None:
    assert watcher.seen[:2] == ["connect", "power-on reset"]
    device.enable_msix()
    memory = device.bus.alloc(4096)
    watcher.seen.clear()
    device.write(0, 0x00, memory.address, 8)
    device.write(0, 0x08, 0x11223344)
    assert device.read(0, 0x08) == 0x11223344
    assert watcher.seen == [
        f"write 0 0x0 {memory.address:#x}",
        "write 0 0x8 0x11223344",
        "dma write 44332211",
        "message 1",
        "read 0 0x8 0x11223344",
    ]
    assert device.take_interrupts() == [1]
    assert bytes(memory.view[:4]) == bytes.fromhex("44332211")


def test_it_sees_blocks_maps_atomics_intx_and_memory(
    card: Echo, watcher: Watcher, device: SimulatedDevice
) -> None:
    memory = device.bus.alloc(4096)
    watcher.seen.clear()
    device.write_block(0, 0x00, bytes(8))
    device.read_block(0, 0x00, 8)
    card.dma.map(memory.address, 16)
    card.dma.read(memory.address, 8)
    card.dma.swap(memory.address, 4, 1)
    card.interrupt()
    card.deassert()
    device.bus.free(memory)
    device.slot.reset(ResetKind.HOT)
    device.slot.unplug()
    assert watcher.seen == [
        "write block 0 0x0 0000000000000000",
        "read block 0 0x0 8",
        "dma map 16",
        "dma read 8",
        "atomic swap",
        "INTx True",
        "INTx False",
        "removed 0x1000",
        "hot reset",
        "disconnect",
    ]


def test_it_changes_what_the_driver_reads(watcher: Watcher, device: SimulatedDevice) -> None:
    device.write(0, 0x00, 0xF0, 8)
    watcher.flip = 0xFF
    assert device.read(0, 0x00) == 0x0F


def test_it_loses_what_the_card_sends(
    card: Echo, watcher: Watcher, device: SimulatedDevice
) -> None:
    watcher.lose_dma = True
    with pytest.raises(DmaError, match="the interposer lost it"):
        device.write(0, 0x08, 1)


def test_it_injects_calls_of_its_own(card: Echo, watcher: Watcher, device: SimulatedDevice) -> None:
    device.enable_msix()
    memory = device.bus.alloc(4096)
    watcher.upstream.dma_write(memory.address, b"injected")
    watcher.upstream.message(0xFEE00000, 0)
    watcher.inner.write(0, 0x00, 8, 0x42)
    assert bytes(memory.view[:8]) == b"injected"
    assert device.take_interrupts() == [0]
    assert card.bar0.address.value == 0x42


def test_interposers_stack(simulated_bus: SimulatedBus) -> None:
    card = Echo()
    card.link = inner = Watcher(card.link)
    card.link = outer = Watcher(card.link)
    device = simulated_bus.plug(card)[0]
    device.enable_msix()
    outer.flip, inner.flip = 0x0F, 0xF0
    assert device.read(0, 0) == 0xFF
    card.interrupt(1)
    assert "message 1" in inner.seen
    assert "message 1" in outer.seen


def test_a_card_without_one_is_called_directly() -> None:
    card = Echo()
    assert card.link is card.endpoint
