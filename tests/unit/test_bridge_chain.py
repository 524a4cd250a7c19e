"""A served card that is bridged and served again, with a client at the far end."""

from __future__ import annotations

import mmap
import os
import select
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.bridged import (
    ADDRESS,
    ASSERT,
    COUNT,
    MEMORY,
    RELEASE,
    RESETS,
    SIGNAL,
    SUM,
    VECTORS,
    Signals,
)
from tests.unit.fake_vfio_client import (
    CONFIG,
    DMA_MAP,
    DMA_READ,
    DMA_WRITE,
    INTX,
    MSI,
    MSIX,
    NONE,
    REGION_INFO,
    REGION_READ,
    SET_IRQS,
    TIMEOUT,
    UNMASK,
    ClientMemory,
    FakeClient,
    Plugs,
    access,
    descriptors,
    dma_map,
    raised,
    set_irqs,
)

from softcard import DmaError
from softcard.bridge.vfio_user import VfioUserCard
from softcard.bus.vfio_user import VfioUserServer

MakeEvents = Callable[[int], list[int]]
AT = 0x10000
MSIX_ENABLE = INITIATE_FLR = 1 << 15


@pytest.fixture
def card() -> Signals:
    return Signals()


@pytest.fixture
def plugs() -> Plugs:
    return Plugs()


@pytest.fixture
def inner(card: Signals, tmp_path: Path) -> Iterator[VfioUserServer]:
    server = VfioUserServer(card, tmp_path / "inner")
    yield server
    server.stop()


@pytest.fixture
def outer(inner: VfioUserServer, plugs: Plugs, tmp_path: Path) -> Iterator[VfioUserServer]:
    server = VfioUserServer(VfioUserCard(inner.paths[0]), tmp_path / "outer", changed=plugs)
    yield server
    server.stop()


@pytest.fixture
def client(outer: VfioUserServer) -> Iterator[FakeClient]:
    with FakeClient(outer.paths[0]) as client:
        client.enable()
        yield client


@pytest.fixture
def eventfds() -> Iterator[MakeEvents]:
    made: list[int] = []

    def make(count: int) -> list[int]:
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        made.extend(fds)
        return fds

    yield make
    for fd in made:
        os.close(fd)


def comes(fd: int) -> int:
    """What an eventfd counts, once it does."""
    assert select.select([fd], [], [], TIMEOUT)[0]
    return raised(fd)


# Registers and memory.


def test_registers_are_those_of_the_first_card(client: FakeClient, card: Signals) -> None:
    assert client.read(CONFIG, 0) == card.device_id << 16 | card.vendor_id
    client.write(0, ADDRESS, 8, 0x1122334455667788)
    assert client.read(0, ADDRESS, 8) == card.bar0.address.value == 0x1122334455667788
    client.write(2, 0, 4, 77, posted=True)
    assert client.read(2, 0) == 77
    assert client.read_block(0, ADDRESS, 8) == (0x1122334455667788).to_bytes(8, "little")


def test_plain_memory_is_one_file_for_all_three(client: FakeClient, card: Signals) -> None:
    query = struct.pack("<IIIIQQ", 256, 0, 0, 0, 0, 0)
    got = client.reply_to(client.send(REGION_INFO, query))
    (fd,) = got.fds
    offset = struct.unpack_from("<Q", got.payload, 24)[0]
    with mmap.mmap(fd, 0x1000, offset=offset + MEMORY) as memory:
        os.close(fd)
        memory[:5] = b"plain"
        assert bytes(card.bar0.memory.view[:5]) == b"plain"


# DMA.


def test_shared_memory_is_shared_with_the_first_card(client: FakeClient, card: Signals) -> None:
    with ClientMemory(2 * mmap.PAGESIZE) as memory:
        client.map(memory, AT, offset=mmap.PAGESIZE, size=mmap.PAGESIZE)
        card.dma.map(AT, 4)[:] = b"here"
        assert bytes(memory.view[mmap.PAGESIZE : mmap.PAGESIZE + 4]) == b"here"
        client.write(0, ADDRESS, 8, AT)
        assert client.read(0, SUM) == sum(b"here")


def test_memory_is_out_of_reach_when_its_removal_is_answered(
    client: FakeClient, card: Signals
) -> None:
    with ClientMemory() as memory:
        client.map(memory, AT)
        view = card.dma.map(AT, 4)
        client.unmap(AT, memory.size)
        view[:] = b"late"
        assert bytes(memory.view[:4]) == bytes(4)
        with pytest.raises(DmaError):
            card.dma.read(AT, 4)


def test_messages_go_all_the_way(client: FakeClient) -> None:
    client.ask(DMA_MAP, dma_map(AT, mmap.PAGESIZE))
    client.write(0, ADDRESS, 8, AT + 16)
    read = client.send(REGION_READ, access(SUM, 0, 4))
    asked = client.receive()
    assert (asked.command, asked.payload) == (DMA_READ, struct.pack("<QQ", AT + 16, 256))
    client.answer(asked, asked.payload + b"\1" * 256)
    assert client.reply_to(read).payload[16:] == struct.pack("<I", 256)
    client.write(0, COUNT, 4, 3, posted=True)
    written = client.receive()
    assert written.command == DMA_WRITE
    assert written.payload == struct.pack("<QQ", AT + 16, 3) + bytes(range(3))
    client.answer(written, written.payload[:16])
    assert client.read(0, COUNT) == 3


@pytest.mark.parametrize("shared", [True, False])
def test_memory_that_may_only_be_read_is_only_read(
    client: FakeClient, card: Signals, shared: bool
) -> None:
    with ClientMemory() as memory:
        memory.view[:4] = b"ROM!"
        client.ask(DMA_MAP, dma_map(AT, memory.size, flags=1), fds=[memory.fd] if shared else [])
        if shared:
            assert card.dma.read(AT, 4) == b"ROM!"
        with pytest.raises(DmaError):
            card.dma.write(AT, b"late")
        assert bytes(memory.view[:4]) == b"ROM!"
        client.unmap(AT, memory.size)


# Interrupts.


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("vector", [0, 3, VECTORS - 1])
def test_msix_vectors_reach_the_client(
    client: FakeClient, card: Signals, vector: int, enabled: bool, eventfds: MakeEvents
) -> None:
    fds = eventfds(VECTORS)
    client.write(CONFIG, card.msix.base + 2, 2, MSIX_ENABLE if enabled else 0)
    for start in range(0, VECTORS, 16):
        client.wire(MSIX, fds[start : start + 16], start=start)
    client.write(0, SIGNAL, 4, vector)
    client.read(0, RESETS)
    assert raised(fds[vector]) == 1
    assert not any(raised(fd) for fd in fds)


def test_a_vector_that_is_wired_late_is_not_lost(
    client: FakeClient, card: Signals, eventfds: MakeEvents
) -> None:
    (fd,) = eventfds(1)
    client.write(CONFIG, card.msix.base + 2, 2, MSIX_ENABLE)
    client.write(0, SIGNAL, 4, VECTORS - 1)
    client.read(0, RESETS)
    client.wire(MSIX, [fd], start=VECTORS - 1)
    assert comes(fd) == 1


def test_msi_reaches_the_client(client: FakeClient, card: Signals, eventfds: MakeEvents) -> None:
    fds = eventfds(4)
    client.write(CONFIG, card.msi.base + 2, 2, 2 << 4 | 1)
    client.wire(MSI, fds)
    client.write(0, SIGNAL, 4, 2)
    client.read(0, RESETS)
    assert [raised(fd) for fd in fds] == [0, 0, 1, 0]


def test_the_line_is_a_level_at_the_far_end(client: FakeClient, eventfds: MakeEvents) -> None:
    (fd,) = eventfds(1)
    client.wire(INTX, [fd])
    client.write(0, ASSERT, 4, 0)
    assert comes(fd) == 1
    client.ask(SET_IRQS, set_irqs(NONE | UNMASK, INTX, 0, 1))
    assert comes(fd) == 1
    client.write(0, RELEASE, 4, 0)
    client.read(0, RESETS)
    client.ask(SET_IRQS, set_irqs(NONE | UNMASK, INTX, 0, 1))
    assert raised(fd) == 0


# Coming and going.


def test_a_reset_reaches_the_first_card(client: FakeClient, card: Signals) -> None:
    before = card.reset_count
    client.write(CONFIG, card.express.base + 8, 2, INITIATE_FLR)
    assert card.reset_count == before + 1


def test_the_next_client_finds_the_first_card_again(
    outer: VfioUserServer, plugs: Plugs, card: Signals, eventfds: MakeEvents
) -> None:
    before = 0
    for number in range(4):
        with FakeClient(outer.paths[0]) as client, ClientMemory() as memory:
            client.enable()
            assert client.read(0, ADDRESS) == 0
            client.write(0, ADDRESS, 4, AT)
            client.map(memory, AT)
            client.wire(MSIX, eventfds(2))
        plugs.wait(connected=False)
        with pytest.raises(DmaError):
            card.dma.map(AT, 4)
        before = before or descriptors()
        assert descriptors() <= before + 2 * number


def test_a_client_loses_its_card_with_the_first_server(
    inner: VfioUserServer, outer: VfioUserServer, plugs: Plugs
) -> None:
    with FakeClient(outer.paths[0]) as client:
        inner.hang_up()
        assert client.hung_up()
    plugs.wait(connected=False)
    with FakeClient(outer.paths[0]) as client:
        assert client.read(CONFIG, 0, 2) == Signals.vendor_id


def test_without_the_first_server_a_client_is_sent_away(
    inner: VfioUserServer, outer: VfioUserServer
) -> None:
    inner.stop()
    for _ in range(2):
        with pytest.raises((EOFError, ConnectionError)):
            FakeClient(outer.paths[0])
