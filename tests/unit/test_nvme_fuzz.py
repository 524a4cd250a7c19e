"""Whatever a driver does, the card lives on, and writes only where it was told to."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.nvme_driver import CC, DOORBELLS, PAGE, NvmeDriver

from softcard.bus.simulated import DmaBuffer
from softcard.cards.nvme import Nvme
from softcard.cards.nvme.command import AdminOpcode, IoOpcode
from softcard.model.link import ResetKind
from softcard.model.options import Size

PAGES = 24
QUEUES = 3
GUARD = b"guard" * 800

word = st.one_of(
    st.integers(0, 7), st.sampled_from([0xFF, 0xFFFF, 0xFFFFFFFF, 0x80000000]),
    st.integers(0, 0xFFFFFFFF),
)  # fmt: skip
address = st.one_of(
    st.tuples(st.just("page"), st.integers(0, PAGES - 1), st.just(0)),
    st.tuples(st.just("page"), st.integers(0, PAGES - 1), st.integers(0, PAGE - 1)),
    st.tuples(st.just("absolute"), st.just(0), st.sampled_from([0, 1, PAGE, (1 << 64) - PAGE])),
    st.tuples(st.just("absolute"), st.just(0), st.integers(0, (1 << 64) - 1)),
)


@dataclass(frozen=True)
class Entry:
    """A submission queue entry; its addresses are pages of the test's memory, or not."""

    qid: int
    opcode: int
    flags: int
    nsid: int
    prps: tuple[tuple[str, int, int], tuple[str, int, int]]
    words: tuple[int, ...]


def entries(queue: st.SearchStrategy[int], opcodes: list[int]) -> st.SearchStrategy[Entry]:
    return st.builds(
        Entry,
        queue,
        st.one_of(st.sampled_from(opcodes), st.integers(0, 255)),
        st.one_of(st.just(0), st.just(0), st.just(0), st.integers(0, 255)),
        st.one_of(st.integers(0, 3), st.sampled_from([33, 0xFFFFFFFF]), word),
        st.tuples(address, address),
        st.tuples(word, word, word, word, word, word),
    )


@dataclass(frozen=True)
class Write:
    """A register write."""

    offset: int
    size: int
    value: int


@dataclass(frozen=True)
class Fill:
    """Content of a page, which may be used as a PRP list or a queue."""

    page: int
    values: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Doorbell:
    """A write of a doorbell register."""

    index: int
    value: int


class Poll:
    """Time passes."""


def queue_entries() -> st.SearchStrategy[Entry]:
    """Creation and deletion of queues that often succeed."""
    return st.builds(
        Entry,
        st.just(0),
        st.sampled_from([0x00, 0x01, 0x04, 0x05]),
        st.just(0),
        st.just(0),
        st.tuples(st.tuples(st.just("page"), st.integers(0, PAGES - 1), st.just(0)), address),
        st.tuples(
            st.builds(lambda qid, size: qid | size << 16, st.integers(0, 4), st.integers(0, 66)),
            st.builds(lambda flags, v: flags | v << 16, st.integers(0, 3), st.integers(0, 4)),
            *[st.just(0)] * 4,
        ),
    )


actions = st.one_of(
    entries(st.just(0), [int(opcode) for opcode in AdminOpcode]),
    entries(st.integers(1, QUEUES), [int(opcode) for opcode in IoOpcode]),
    queue_entries(),
    st.builds(Doorbell, st.integers(0, 2 * QUEUES + 3), st.one_of(st.integers(0, 40), word)),
    st.builds(Fill, st.integers(0, PAGES - 1), st.lists(address, max_size=20).map(tuple)),
    st.builds(Write, st.integers(0, 0x1FFF), st.sampled_from([1, 2, 4, 8]), word),
    st.builds(Write, st.integers(0, 0x40).map(lambda n: n & ~3), st.just(4), word),
    st.builds(Poll),
    st.sampled_from(ResetKind),
)


class Fuzzer:
    """Carries actions out, and checks what must hold."""

    def __init__(self, card: Nvme, *, shared: bool) -> None:
        self.driver = NvmeDriver(card, strict=False, shared=shared)
        self.guards: list[DmaBuffer] = []
        self.pages: list[DmaBuffer] = []
        for _ in range(PAGES):
            self.pages.append(self.driver.bus.alloc(PAGE))
            self.guards.append(self.driver.buffer(PAGE, GUARD))
        for qid in range(1, QUEUES + 1):
            self.driver.create_queue(qid)

    def address(self, kind: str, page: int, offset: int) -> int:
        return self.pages[page].address + offset if kind == "page" else offset

    def act(self, action: object) -> None:
        driver, device = self.driver, self.driver.device
        match action:
            case Entry():
                dwords = dict(zip((f"dw{n}" for n in range(10, 16)), action.words, strict=True))
                driver.push(
                    action.opcode, action.qid, flags=action.flags, nsid=action.nsid,
                    prp1=self.address(*action.prps[0]), prp2=self.address(*action.prps[1]),
                    **dwords,
                )  # fmt: skip
                driver.reap(action.qid)
            case Doorbell():
                device.write(0, DOORBELLS + 4 * action.index, action.value)
            case Fill():
                words = self.pages[action.page].view.cast("Q")
                for index, place in enumerate(action.values):
                    words[index] = self.address(*place)
            case Write():
                value = action.value & (1 << 8 * action.size) - 1
                device.write(0, action.offset, value, action.size)
                device.read(0, action.offset, action.size)
            case Poll():
                driver.bus.run_for(0)
            case ResetKind():
                driver.slot.reset(action)
                device.enumerate()
                device.enable_msix()
                driver.enable()
                for qid in range(1, QUEUES + 1):
                    driver.create_queue(qid)

    def check(self) -> None:
        """No handler has raised, the guards are whole, and after a reset everything works."""
        driver, errors = self.driver, self.driver.card.endpoint.errors
        assert not errors, errors[0]
        assert all(bytes(guard.view[: len(GUARD)]) == GUARD for guard in self.guards)
        driver.write32(CC, 0)
        driver.device.enumerate()
        driver.device.enable_msix()
        driver.bus.run_until(lambda: not driver.status)
        driver.enable()
        driver.create_queue(1)
        assert driver.ok(0x00, 1, nsid=0xFFFFFFFF) == 0
        assert driver.identify(1)[24:40] == b"softcard NVMe   "
        assert not driver.card.endpoint.errors


@pytest.mark.parametrize("shared", [True, False])
@given(actions=st.lists(actions, max_size=60))
@settings(max_examples=150)
def test_a_card_in_memory_survives_everything(shared: bool, actions: list[object]) -> None:
    card = Nvme(size=Size("1M"), queues=QUEUES, queue_entries=64, namespaces=2)
    fuzzer = Fuzzer(card, shared=shared)
    try:
        for action in actions:
            fuzzer.act(action)
        fuzzer.check()
    finally:
        fuzzer.driver.close()


@given(actions=st.lists(actions, max_size=40))
@settings(max_examples=40)
def test_a_card_with_a_file_survives_everything(actions: list[object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "disk.img"
        card = Nvme(size=Size("1M"), file=file, queues=QUEUES, queue_entries=64, namespaces=2)
        fuzzer = Fuzzer(card, shared=True)
        try:
            for action in actions:
                fuzzer.act(action)
            fuzzer.check()
        finally:
            fuzzer.driver.close()
        assert file.stat().st_size == 1 << 20
        Nvme(file=file, queues=QUEUES).close()


@given(
    entries=st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=31),
    qid=st.integers(0, 1),
)
def test_random_bytes_are_commands_like_any_other(entries: list[bytes], qid: int) -> None:
    fuzzer = Fuzzer(Nvme(size=Size("1M"), queues=QUEUES), shared=True)
    queue = fuzzer.driver.queues[qid]
    # An asynchronous event request completes when an event comes, which none does.
    commands = [entry if entry[0] != 0x0C or qid else b"\xff" + entry[1:] for entry in entries]
    start = queue.tail
    for offset, entry in enumerate(commands):
        at = (start + offset) % queue.size
        queue.sq.view[64 * at : 64 * at + 64] = entry
    queue.tail = (start + len(commands)) % queue.size
    fuzzer.driver.ring_sq(qid, queue.tail)
    assert len(fuzzer.driver.reap(qid)) == len(commands)
    fuzzer.check()
    fuzzer.driver.close()
