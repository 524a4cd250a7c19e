"""A small NVMe driver for tests, on the simulated bus."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from softcard.bus.simulated import DmaBuffer, SimulatedBus
from softcard.cards.nvme import Nvme
from softcard.model.link import LinkFeatures

CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = (
    0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30,
)  # fmt: skip
DOORBELLS = 0x1000
ENABLE = 0x00460001
READY, FATAL = 1, 2
PAGE = 4096

_ENTRY = struct.Struct("<BBHI16xQQ6I")
_COMPLETION = struct.Struct("<IIHHHH")


@dataclass(frozen=True)
class Completion:
    """One completion queue entry; `status` is status code type and code, without the other bits."""

    result: int
    sq_head: int
    queue: int
    cid: int
    status: int
    more: bool
    do_not_retry: bool


@dataclass
class Queue:
    """A submission and a completion queue of one identifier, as the host sees them."""

    qid: int
    size: int
    sq: DmaBuffer
    cq: DmaBuffer
    tail: int = 0
    head: int = 0
    phase: int = 1
    next_cid: int = 1


class NvmeDriver:
    """Enables a controller and sends it commands.

    Args:
        card: the card, which is plugged into a bus of its own.
        strict: see `SimulatedBus`; False for tests that give impossible addresses.
        enable: also enable the controller, with MSI-X.
        entries: of a queue.
        shared: the bus shares memory.
        moves: where it does not, it moves memory, and announces that of queues and lists.
    """

    def __init__(
        self, card: Nvme, *, strict: bool = True, enable: bool = True, entries: int = 32,
        shared: bool = True, moves: bool = False,
    ) -> None:  # fmt: skip
        self.bus = SimulatedBus(strict=strict)
        self.card = card
        self.slot = self.bus.plug(card)
        self.device = self.slot[0]
        if not shared:
            self.device.features = LinkFeatures(bus="simulated", shared_memory=False, moves=moves)
        self.moves = moves
        self.entries = entries
        self.page = PAGE
        self.queues: dict[int, Queue] = {}
        if enable:
            self.device.enable_msix()
            self.enable()

    def close(self) -> None:
        self.slot.unplug()
        self.card.close()

    def alloc(self, size: int, *, announced: bool = True) -> DmaBuffer:
        """Memory aligned to the page size that the controller was enabled with."""
        if self.page == PAGE:
            return self.bus.alloc(size, announced=announced)
        buffer = self.bus.alloc(size + self.page, announced=announced)
        skip = -buffer.address % self.page
        return DmaBuffer(buffer.address + skip, buffer.view[skip : skip + size])

    # Registers.

    def read32(self, offset: int) -> int:
        return self.device.read(0, offset)

    def write32(self, offset: int, value: int) -> None:
        self.device.write(0, offset, value)

    @property
    def status(self) -> int:
        return self.read32(CSTS)

    def enable(self, configuration: int = ENABLE) -> None:
        """Give the controller new admin queues and wait until it is ready."""
        self.page = PAGE << (configuration >> 7 & 0xF)
        queue = Queue(0, self.entries, self.alloc(64 * self.entries), self.alloc(16 * self.entries))
        self.queues = {0: queue}
        self.write32(AQA, (self.entries - 1) * 0x10001)
        self.device.write(0, ASQ, queue.sq.address, 8)
        self.device.write(0, ACQ, queue.cq.address, 8)
        self.write32(CC, configuration)
        self.bus.run_until(lambda: self.status)
        assert self.status & READY, f"CSTS is {self.status:#x}"

    def disable(self) -> None:
        self.write32(CC, ENABLE & ~1)
        self.bus.run_until(lambda: not self.status & READY)

    # Queues.

    def ring_sq(self, qid: int, tail: int) -> None:
        self.write32(DOORBELLS + qid * 8, tail)

    def ring_cq(self, qid: int, head: int) -> None:
        self.write32(DOORBELLS + qid * 8 + 4, head)

    def create_queue(
        self, qid: int = 1, entries: int | None = None, *, vector: int | None = None, flags: int = 3
    ) -> Queue:
        """Create a completion and a submission queue."""
        size = entries or self.entries
        queue = Queue(qid, size, self.alloc(64 * size), self.alloc(16 * size))
        dw10 = qid | (size - 1) << 16
        vector = qid if vector is None else vector
        self.ok(0x05, prp1=queue.cq.address, dw10=dw10, dw11=flags | vector << 16)
        self.ok(0x01, prp1=queue.sq.address, dw10=dw10, dw11=1 | qid << 16)
        self.queues[qid] = queue
        return queue

    def push(
        self, opcode: int, qid: int = 0, *, nsid: int = 0, prp1: int = 0, prp2: int = 0,
        flags: int = 0, cid: int | None = None, dw10: int = 0, dw11: int = 0, dw12: int = 0,
        dw13: int = 0, dw14: int = 0, dw15: int = 0, ring: int = True,
    ) -> int:  # fmt: skip
        """Put a command on a queue, and ring its doorbell; returns the command's identifier."""
        queue = self.queues[qid]
        if cid is None:
            cid, queue.next_cid = queue.next_cid, queue.next_cid % 0xFFFF + 1
        _ENTRY.pack_into(
            queue.sq.view, queue.tail * 64, opcode, flags, cid, nsid, prp1, prp2,
            dw10, dw11, dw12, dw13, dw14, dw15,
        )  # fmt: skip
        queue.tail = (queue.tail + 1) % queue.size
        if ring:
            self.ring_sq(qid, queue.tail)
        return cid

    def reap(self, qid: int = 0, *, ring: bool = True) -> list[Completion]:
        """Take every completion that is there."""
        queue, taken = self.queues[qid], []
        while True:
            result, _, sq_head, sq_id, cid, status = _COMPLETION.unpack_from(
                queue.cq.view, queue.head * 16
            )
            if status & 1 != queue.phase:
                break
            taken.append(
                Completion(
                    result, sq_head, sq_id, cid, status >> 1 & 0x7FF,
                    bool(status >> 14 & 1), bool(status >> 15 & 1),
                )
            )  # fmt: skip
            queue.head += 1
            if queue.head == queue.size:
                queue.head, queue.phase = 0, queue.phase ^ 1
        if taken and ring:
            self.ring_cq(qid, queue.head)
        return taken

    def run(self, opcode: int, qid: int = 0, **fields: int) -> Completion:
        """Execute one command, waiting for its completion."""
        cid = self.push(opcode, qid, **fields)
        found: list[Completion] = []

        def completed() -> bool:
            found.extend(self.reap(qid))
            return bool(found)

        self.bus.run_until(completed)
        assert [c.cid for c in found] == [cid]
        assert found[0].queue == qid
        return found[0]

    def ok(self, opcode: int, qid: int = 0, **fields: int) -> int:
        """Execute one command, which succeeds; returns dword 0."""
        completion = self.run(opcode, qid, **fields)
        assert completion.status == 0, f"status {completion.status:#x}"
        return completion.result

    # Data.

    def buffer(self, size: int = PAGE, fill: bytes = b"") -> DmaBuffer:
        buffer = self.alloc(size, announced=not self.moves)
        buffer.view[: len(fill)] = fill
        return buffer

    def prps(self, buffer: DmaBuffer) -> dict[str, int]:
        """Data pointer for a page-aligned buffer, with a list where it needs one."""
        pages = list(range(buffer.address, buffer.address + len(buffer.view), self.page))
        slots = self.page // 8
        if len(pages) == 1:
            return {"prp1": pages[0]}
        if len(pages) == 2:
            return {"prp1": pages[0], "prp2": pages[1]}
        rest = pages[1:]
        lists: list[list[int]] = []
        while len(rest) > slots:
            lists.append(rest[: slots - 1])
            rest = rest[slots - 1 :]
        lists.append(rest)
        buffers = [self.alloc(self.page) for _ in lists]
        for index, entries in enumerate(lists):
            if index + 1 < len(lists):
                entries = [*entries, buffers[index + 1].address]
            struct.pack_into(f"<{len(entries)}Q", buffers[index].view, 0, *entries)
        return {"prp1": pages[0], "prp2": buffers[0].address}

    def identify(self, cns: int, nsid: int = 0, **fields: int) -> bytes:
        buffer = self.buffer()
        self.ok(0x06, nsid=nsid, prp1=buffer.address, dw10=cns, **fields)
        return bytes(buffer.view)

    def log_page(self, page: int, length: int, *, retain: bool = False, offset: int = 0) -> bytes:
        buffer = self.buffer(length)
        self.ok(
            0x02, nsid=0xFFFFFFFF, **self.prps(buffer),
            dw10=page | retain << 15 | (length // 4 - 1 & 0xFFFF) << 16, dw12=offset,
        )  # fmt: skip
        return bytes(buffer.view)

    def set_feature(self, feature: int, value: int, *, save: bool = False, nsid: int = 0) -> int:
        return self.ok(0x09, dw10=feature | save << 31, dw11=value, nsid=nsid)

    def get_feature(self, feature: int, *, select: int = 0, dw11: int = 0, nsid: int = 0) -> int:
        return self.ok(0x0A, dw10=feature | select << 8, dw11=dw11, nsid=nsid)

    def io(self, opcode: int, lba: int = 0, blocks: int = 1, **fields: int) -> Completion:
        """Execute one I/O command on blocks of namespace 1, with queue 1."""
        command = {
            "nsid": 1, "dw10": lba & 0xFFFFFFFF, "dw11": lba >> 32, "dw12": blocks - 1,
        } | fields  # fmt: skip
        return self.run(opcode, 1, **command)

    def write(self, lba: int, data: bytes, *, qid: int = 1, nsid: int = 1, shift: int = 9) -> None:
        buffer = self.buffer(len(data), data)
        self.ok(
            0x01, qid, nsid=nsid, **self.prps(buffer), dw10=lba & 0xFFFFFFFF, dw11=lba >> 32,
            dw12=(len(data) >> shift) - 1,
        )  # fmt: skip

    def read(self, lba: int, blocks: int, *, qid: int = 1, nsid: int = 1, shift: int = 9) -> bytes:
        buffer = self.buffer(blocks << shift)
        self.ok(
            0x02, qid, nsid=nsid, **self.prps(buffer), dw10=lba & 0xFFFFFFFF, dw11=lba >> 32,
            dw12=blocks - 1,
        )  # fmt: skip
        return bytes(buffer.view)
