"""What a command costs in the NVMe card itself, with no kernel and no other process.

    python benchmarks/nvme_engine.py [SECONDS]

The card is on the simulated bus, with memory shared as a bus would share it. The time includes the
doorbells, as register writes through the link, and the interrupts; it does not include a driver's
work, for the entries are made beforehand.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
import time
from pathlib import Path

from softcard.bus.simulated import SimulatedBus, SimulatedDevice
from softcard.cards.nvme import Nvme
from softcard.cards.nvme.engines import ENGINES
from softcard.model.options import Size

ENTRY = struct.Struct("<BBHI16xQQ6I")
READ, WRITE, CREATE_SQ, CREATE_CQ = 2, 1, 1, 5
ENTRIES = 1024
PAGE = 4096
SIZE = 256 << 20
RESULTS = "{:24} {:>6} {:>9} {:>8} {:>8}"


class Host:
    """A driver that does as little as it can."""

    def __init__(self, card: Nvme) -> None:
        self.bus = SimulatedBus()
        self.slot = self.bus.plug(card)
        self.device: SimulatedDevice = self.slot[0]
        # One buffer, as a machine's memory is one: looking an address up is then what it is there.
        self.memory = self.bus.alloc(64 << 20)
        self._next = self._tail = 0
        self.device.enable_msix()
        admin_sq, admin_cq = self.alloc(PAGE), self.alloc(PAGE)
        self.device.write(0, 0x24, 0x003F003F)
        self.device.write(0, 0x28, admin_sq, 8)
        self.device.write(0, 0x30, admin_cq, 8)
        self.device.write(0, 0x14, 0x00460001)
        self.sq, self.cq = self.alloc(ENTRIES * 64), self.alloc(ENTRIES * 16)
        size = 1 | (ENTRIES - 1) << 16
        for index, (opcode, address, flags) in enumerate(
            [(CREATE_CQ, self.cq, 1 << 16 | 3), (CREATE_SQ, self.sq, 1 << 16 | 1)]
        ):
            entry = ENTRY.pack(opcode, 0, index, 0, address, 0, size, flags, 0, 0, 0, 0)
            self.store(admin_sq + 64 * index, entry)
        self.device.write(0, 0x1000, 2)

    def alloc(self, size: int) -> int:
        """Pages of the one buffer."""
        at, self._next = self._next, self._next + -(-size // PAGE) * PAGE
        return self.memory.address + at

    def store(self, address: int, data: bytes) -> None:
        """Fill the one buffer."""
        at = address - self.memory.address
        self.memory.view[at : at + len(data)] = data

    def fill_queue(self, opcode: int, length: int, depth: int) -> None:
        """Make every entry of the queue, with as many buffers as are in use at once."""
        pages, blocks = max(length // PAGE, 1), length // 512
        buffers = []
        for _ in range(depth):
            start = self.alloc(length)
            second = start + PAGE
            if pages > 2:
                second = self.alloc(PAGE)
                rest = [start + PAGE * n for n in range(1, pages)]
                self.store(second, struct.pack(f"<{len(rest)}Q", *rest))
            buffers.append((start, second if pages > 1 else 0))
        for index in range(ENTRIES):
            lba = random.randrange(SIZE // length) * blocks
            prps = buffers[index % depth]
            entry = ENTRY.pack(opcode, 0, index, 1, *prps, lba, 0, blocks - 1, 0, 0, 0)
            self.store(self.sq + 64 * index, entry)

    def run(self, depth: int, seconds: float) -> float:
        """Commands per second, a doorbell and an interrupt for `depth` of them."""
        write, tail, commands = self.device.endpoint.write, self._tail, 0
        run_deferred = self.slot.loop.run_deferred
        start = time.perf_counter()
        end = start + seconds
        while time.perf_counter() < end:
            for _ in range(max(256 // depth, 1)):
                tail = (tail + depth) % ENTRIES
                write(0, 0x1008, 4, tail)
                run_deferred()
                write(0, 0x100C, 4, tail)
                commands += depth
            self.device.interrupts.clear()
        self._tail = tail
        return commands / (time.perf_counter() - start)


def measure(what: str, opcode: int, length: int, depth: int, card: Nvme, seconds: float) -> None:
    """Measure one case, the best of three runs, and print it."""
    host = Host(card)
    host.fill_queue(opcode, length, depth)
    best = max(host.run(depth, seconds / 3) for _ in range(3))
    assert not card.endpoint.errors
    assert card.controller.errors.count == 0
    host.slot.unplug()
    card.close()
    print(
        RESULTS.format(
            what, depth, f"{best / 1e3:.0f}", f"{1e6 / best:.2f}", f"{best * length / 1e9:.2f}"
        )
    )


def main() -> None:
    """Print a table for each engine."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.5
    for engine in ENGINES:
        Nvme.engine = engine
        print(RESULTS.format(engine.__name__, "depth", "1000 IOPS", "µs each", "GB/s"))
        measure_all(seconds)


def measure_all(seconds: float) -> None:
    """Measure every case."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "disk.img"
        for depth in (1, 16, 64, 256):
            measure("4 KiB read", READ, PAGE, depth, Nvme(size=Size(SIZE)), seconds)
        measure("4 KiB write", WRITE, PAGE, 16, Nvme(size=Size(SIZE)), seconds)
        measure("512 B read", READ, 512, 16, Nvme(size=Size(SIZE)), seconds)
        measure("8 KiB read", READ, 2 * PAGE, 16, Nvme(size=Size(SIZE)), seconds)
        measure("128 KiB read", READ, 128 << 10, 16, Nvme(size=Size(SIZE)), seconds)
        for name, opcode in (("write", WRITE), ("read", READ)):
            card = Nvme(size=Size(SIZE), file=file)
            measure(f"4 KiB {name}, file", opcode, PAGE, 16, card, seconds)
        card = Nvme(file=file)
        measure("128 KiB read, file", READ, 128 << 10, 16, card, seconds)


if __name__ == "__main__":
    main()
