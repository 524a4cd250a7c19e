"""The vfio-user server: interrupts as eventfds and as messages."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.fake_vfio_client import (
    ACT,
    BOOL,
    CONFIG,
    EVENTFD,
    INTERRUPT,
    INTERRUPT_NOW,
    INTX,
    MASK,
    MSI,
    MSIX,
    NONE,
    QEMU_CAPABILITIES,
    RELEASE,
    RESET,
    SET_IRQS,
    TIMEOUT,
    TRIGGER,
    UNMASK,
    Board,
    FakeClient,
    Got,
    RefusedError,
    descriptors,
    in_thread,
    raised,
    served,
    set_irqs,
)

from softcard.bus.vfio_user import VfioUserServer
from softcard.wire.address import NetworkAddress

MSI_CONTROL, MSIX_CONTROL = 2, 2
MSI_ENABLE, MSIX_ENABLE = 1, 0x8000
VECTORS = 24
EventFds = Callable[[int], list[int]]


@pytest.fixture
def card() -> Board:
    return Board()


@pytest.fixture
def server(card: Board, tmp_path: Path) -> Iterator[VfioUserServer]:
    with served(card, tmp_path) as server:
        yield server


@pytest.fixture
def client(server: VfioUserServer) -> Iterator[FakeClient]:
    with FakeClient(server.paths[0]) as client:
        client.enable()
        yield client


@pytest.fixture
def eventfds() -> Iterator[EventFds]:
    made: list[int] = []

    def make(count: int) -> list[int]:
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        made.extend(fds)
        return fds

    yield make
    for fd in made:
        os.close(fd)


def capability(client: FakeClient, ident: int) -> int:
    """Where a capability is."""
    at = client.read(CONFIG, 0x34, 1)
    while client.read(CONFIG, at, 1) != ident:
        at = client.read(CONFIG, at + 1, 1)
    return at


def enable_msix(client: FakeClient) -> None:
    client.write(CONFIG, capability(client, 0x11) + MSIX_CONTROL, 2, MSIX_ENABLE)


def enable_msi(client: FakeClient) -> None:
    client.write(CONFIG, capability(client, 5) + MSI_CONTROL, 2, MSI_ENABLE | 2 << 4)


def interrupt(client: FakeClient, vector: int) -> None:
    """Have the card signal a vector; it has when this returns."""
    client.write(0, INTERRUPT_NOW, 4, vector)


def counts(fds: list[int]) -> list[int]:
    return [raised(fd) for fd in fds]


# Messages: MSI-X and MSI.


def test_each_vector_has_an_eventfd(client: FakeClient, eventfds: EventFds) -> None:
    enable_msix(client)
    fds = eventfds(VECTORS)
    # In chunks, as many as one message carries.
    client.wire(MSIX, fds[:16])
    client.wire(MSIX, fds[16:], start=16)
    for vector in (0, 5, 5, 15, 16, 23):
        interrupt(client, vector)
    found = counts(fds)
    assert found[5] == 2
    assert [vector for vector, count in enumerate(found) if count] == [0, 5, 15, 16, 23]


def test_msi_has_fewer(client: FakeClient, eventfds: EventFds) -> None:
    enable_msi(client)
    fds = eventfds(4)
    client.wire(MSI, fds)
    for vector in (0, 3):
        interrupt(client, vector)
    assert counts(fds) == [1, 0, 0, 1]


def test_what_was_signalled_before_it_was_wired_comes_then(
    client: FakeClient, eventfds: EventFds
) -> None:
    enable_msix(client)
    fds = eventfds(4)
    client.wire(MSIX, fds[:2])
    interrupt(client, 3)
    assert client.read(4, 0x800, 8) == 1 << 3
    client.wire(MSIX, fds[2:], start=2)
    assert counts(fds) == [0, 0, 0, 1]
    assert client.read(4, 0x800, 8) == 0


def test_a_vector_that_lost_its_eventfd_stays_pending(
    client: FakeClient, eventfds: EventFds
) -> None:
    enable_msix(client)
    fds = eventfds(3)
    client.wire(MSIX, fds)
    client.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 1, 1))
    for vector in range(3):
        interrupt(client, vector)
    assert counts(fds) == [1, 0, 1]
    client.wire(MSIX, fds[1:2], start=1)
    assert counts(fds) == [0, 1, 0]


def test_the_only_vector_may_lose_its_eventfd_too(client: FakeClient, eventfds: EventFds) -> None:
    enable_msix(client)
    fds = eventfds(1)
    client.wire(MSIX, fds)
    client.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 0, 1))
    interrupt(client, 0)
    assert counts(fds) == [0]
    client.wire(MSIX, fds)
    assert counts(fds) == [1]


def test_an_eventfd_may_be_replaced(client: FakeClient, eventfds: EventFds) -> None:
    enable_msix(client)
    old, new = eventfds(2)
    client.wire(MSIX, [old])
    before = descriptors()
    client.wire(MSIX, [new])
    assert descriptors() == before
    interrupt(client, 0)
    assert counts([old, new]) == [0, 1]


def test_a_count_of_0_disables_all(client: FakeClient, eventfds: EventFds) -> None:
    enable_msix(client)
    fds = eventfds(8)
    before = descriptors()
    client.wire(MSIX, fds)
    assert descriptors() == before + 8
    client.ask(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, 0, 0))
    assert descriptors() == before
    interrupt(client, 2)
    assert not any(counts(fds))


@pytest.mark.parametrize("form", [NONE, BOOL])
def test_a_masked_vector_is_sent_when_it_is_unmasked(
    client: FakeClient, eventfds: EventFds, form: int
) -> None:
    enable_msix(client)
    fds = eventfds(4)
    client.wire(MSIX, fds)
    chosen = b"\0\1" if form == BOOL else b""
    start, count = (1, 2) if form == BOOL else (2, 1)
    client.ask(SET_IRQS, set_irqs(form | MASK, MSIX, start, count, chosen))
    for vector in (1, 2, 2, 3):
        interrupt(client, vector)
    assert counts(fds) == [0, 1, 0, 1]
    client.ask(SET_IRQS, set_irqs(form | UNMASK, MSIX, start, count, chosen))
    assert counts(fds) == [0, 0, 1, 0]
    interrupt(client, 2)
    assert counts(fds) == [0, 0, 1, 0]


@pytest.mark.parametrize("form", [NONE, BOOL])
def test_the_client_may_trigger_an_interrupt_itself(
    client: FakeClient, eventfds: EventFds, form: int
) -> None:
    fds = eventfds(4)
    client.wire(MSIX, fds)
    client.ask(SET_IRQS, set_irqs(form | TRIGGER, MSIX, 1, 3, b"\1\0\1" if form == BOOL else b""))
    assert counts(fds) == ([0, 1, 0, 1] if form == BOOL else [0, 1, 1, 1])


def test_an_interrupt_may_come_from_another_thread(
    client: FakeClient, card: Board, eventfds: EventFds
) -> None:
    enable_msix(client)
    fds = eventfds(2)
    client.wire(MSIX, fds)
    for _ in range(50):
        in_thread(lambda: card.interrupt(1))()
    assert counts(fds) == [0, 50]


def test_no_interrupt_is_lost_while_vectors_are_wired_anew(
    client: FakeClient, card: Board, eventfds: EventFds
) -> None:
    enable_msix(client)
    (fd,) = eventfds(1)
    client.wire(MSIX, [fd])
    rounds = 300

    def signal() -> int:
        for _ in range(rounds):
            # Each waits until the one before has come: edges of one vector may merge.
            card.interrupt(0)
            assert select.select([fd], [], [], TIMEOUT)[0]
            raised(fd)
        return rounds

    ended = in_thread(signal)
    for _ in range(rounds):
        client.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 0, 1))
        client.wire(MSIX, [fd])
    assert ended() == rounds


def test_an_eventfd_that_is_full_holds_nobody_up(client: FakeClient, card: Board) -> None:
    enable_msix(client)
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(fd, (1 << 64) - 2)
    client.wire(MSIX, [fd])
    interrupt(client, 0)
    assert os.eventfd_read(fd) == (1 << 64) - 2
    interrupt(client, 0)
    assert os.eventfd_read(fd) == 1
    os.close(fd)


def test_interrupts_end_with_the_client(
    server: VfioUserServer, card: Board, eventfds: EventFds
) -> None:
    fds = eventfds(VECTORS)
    before = descriptors()
    for _ in range(3):
        with FakeClient(server.paths[0]) as client:
            enable_msix(client)
            client.wire(MSIX, fds[:16])
            client.wire(INTX, fds[16:17])
            client.ask(SET_IRQS, set_irqs(EVENTFD | UNMASK, INTX, 0, 1), fds=[fds[17]])
    with FakeClient(server.paths[0]) as client:
        enable_msix(client)
        client.enable()
        interrupt(client, 0)
        assert not any(counts(fds))
    server.stop()
    assert descriptors() <= before


# INTx.


def test_intx_masks_itself_and_comes_again_while_it_is_asserted(
    client: FakeClient, eventfds: EventFds
) -> None:
    fds = eventfds(1)
    client.wire(INTX, fds)
    unmask = set_irqs(NONE | UNMASK, INTX, 0, 1)
    interrupt(client, 0)
    interrupt(client, 1)
    assert counts(fds) == [1]
    for _ in range(3):
        client.ask(SET_IRQS, unmask)
        assert counts(fds) == [1]
    client.write(0, RELEASE, 4, 0)
    client.write(0, RELEASE, 4, 1)
    client.ask(SET_IRQS, unmask)
    assert counts(fds) == [0]
    interrupt(client, 0)
    assert counts(fds) == [1]


def test_intx_that_was_asserted_before_it_was_wired_comes_then(
    client: FakeClient, eventfds: EventFds
) -> None:
    fds = eventfds(1)
    interrupt(client, 0)
    client.wire(INTX, fds)
    assert counts(fds) == [1]


def test_masked_intx_waits(client: FakeClient, eventfds: EventFds) -> None:
    fds = eventfds(1)
    client.wire(INTX, fds)
    client.ask(SET_IRQS, set_irqs(BOOL | MASK, INTX, 0, 1, b"\1"))
    interrupt(client, 0)
    assert counts(fds) == [0]
    client.ask(SET_IRQS, set_irqs(BOOL | UNMASK, INTX, 0, 1, b"\0"))
    assert counts(fds) == [0]
    client.ask(SET_IRQS, set_irqs(BOOL | UNMASK, INTX, 0, 1, b"\1"))
    assert counts(fds) == [1]


def test_intx_is_masked_and_unmasked_by_eventfds(client: FakeClient, eventfds: EventFds) -> None:
    trigger, mask, unmask = eventfds(3)
    client.wire(INTX, [trigger])
    client.ask(SET_IRQS, set_irqs(EVENTFD | MASK, INTX, 0, 1), fds=[mask])
    client.ask(SET_IRQS, set_irqs(EVENTFD | UNMASK, INTX, 0, 1), fds=[unmask])
    os.eventfd_write(mask, 1)
    wait_until_taken(mask)
    interrupt(client, 0)
    assert raised(trigger) == 0
    for _ in range(3):
        os.eventfd_write(unmask, 1)
        assert select.select([trigger], [], [], TIMEOUT)[0]
        assert raised(trigger) == 1
    before = descriptors()
    client.ask(SET_IRQS, set_irqs(EVENTFD | UNMASK, INTX, 0, 1))
    client.ask(SET_IRQS, set_irqs(NONE | TRIGGER, INTX, 0, 0))
    assert descriptors() == before - 3


def wait_until_taken(fd: int) -> None:
    """Until the server has read an eventfd that was written."""
    while select.select([fd], [], [], 0)[0]:
        os.sched_yield()


def test_a_reset_releases_intx(client: FakeClient, eventfds: EventFds) -> None:
    fds = eventfds(1)
    client.wire(INTX, fds)
    interrupt(client, 0)
    assert counts(fds) == [1]
    client.ask(RESET)
    client.ask(SET_IRQS, set_irqs(NONE | UNMASK, INTX, 0, 1))
    assert counts(fds) == [0]


# What is refused.


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        set_irqs(NONE | TRIGGER, MSIX, 0, 1)[:-1],
        set_irqs(0, MSIX, 0, 1),
        set_irqs(NONE, MSIX, 0, 1),
        set_irqs(TRIGGER, MSIX, 0, 1),
        set_irqs(NONE | BOOL | TRIGGER, MSIX, 0, 1, b"\1"),
        set_irqs(NONE | MASK | UNMASK, MSIX, 0, 1),
        set_irqs(NONE | TRIGGER | 64, MSIX, 0, 1),
        set_irqs(NONE | TRIGGER, 5, 0, 1),
        set_irqs(NONE | TRIGGER, 0xFFFFFFFF, 0, 1),
        set_irqs(NONE | TRIGGER, 3, 0, 1),
        set_irqs(NONE | TRIGGER, MSIX, 0, VECTORS + 1),
        set_irqs(NONE | TRIGGER, MSIX, VECTORS, 1),
        set_irqs(NONE | TRIGGER, MSIX, 0xFFFFFFFF, 0xFFFFFFFF),
        set_irqs(NONE | TRIGGER, MSIX, 1, 0),
        set_irqs(BOOL | TRIGGER, MSIX, 0, 0),
        set_irqs(NONE | MASK, MSIX, 0, 0),
        set_irqs(BOOL | TRIGGER, MSIX, 0, 3, b"\1\1"),
    ],
)
def test_what_means_nothing_is_refused(client: FakeClient, payload: bytes) -> None:
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(SET_IRQS, payload)


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (set_irqs(EVENTFD | TRIGGER, MSIX, 0, 2), 1),
        (set_irqs(EVENTFD | TRIGGER, MSIX, 0, 2), 3),
        (set_irqs(EVENTFD | TRIGGER, MSIX, 0, 0), 1),
        (set_irqs(NONE | TRIGGER, MSIX, 0, 1), 1),
        (set_irqs(BOOL | TRIGGER, MSIX, 0, 1, b"\1"), 1),
        (set_irqs(EVENTFD | MASK, MSIX, 0, 1), 1),
        (set_irqs(EVENTFD | UNMASK, INTX, 0, 1), 2),
    ],
)
def test_the_wrong_number_of_descriptors_is_refused(
    client: FakeClient, eventfds: EventFds, payload: bytes, count: int
) -> None:
    fds = eventfds(count)
    before = descriptors()
    with pytest.raises(RefusedError, match="EINVAL"):
        client.ask(SET_IRQS, payload, fds=fds)
    assert descriptors() == before


def test_only_an_eventfd_can_be_signalled(client: FakeClient, eventfds: EventFds) -> None:
    reading, writing = os.pipe()
    memory = os.memfd_create("no eventfd")
    before = descriptors()
    for wrong in (reading, writing, memory, client.socket.fileno()):
        with pytest.raises(RefusedError, match="EINVAL"):
            client.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 0, 2), fds=[*eventfds(1), wrong])
        with pytest.raises(RefusedError, match="EINVAL"):
            client.ask(SET_IRQS, set_irqs(EVENTFD | UNMASK, INTX, 0, 1), fds=[wrong])
    for fd in (reading, writing, memory):
        os.close(fd)
    assert descriptors() == before - 3 + 4


# Interrupts as messages, where no descriptor can pass.


@pytest.fixture
def far_client(card: Board) -> Iterator[FakeClient]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = VfioUserServer(card, NetworkAddress("tcp", "127.0.0.1", port))
    capabilities = {"capabilities": {"softcard_interrupts": True}}
    try:
        with FakeClient(socket.create_connection(("127.0.0.1", port)), capabilities) as client:
            client.enable()
            yield client
    finally:
        card.gate.set()
        server.stop()


def told(got: Got) -> tuple[int, ...]:
    """Type, vector and level that an INTERRUPT tells."""
    assert (got.command, got.flags) == (INTERRUPT, 0x10)
    return struct.unpack("<III", got.payload)


def test_vectors_are_told_by_messages(far_client: FakeClient, card: Board) -> None:
    client = far_client
    enable_msix(client)
    client.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 0, 4, b"\1\1\0\1"))
    for vector in (0, 3):
        interrupt(client, vector)
        assert told(client.receive()) == (MSIX, vector, 1)
    interrupt(client, 2)
    assert not client.waiting
    client.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 2, 1, b"\1"))
    assert told(client.receive()) == (MSIX, 2, 1)
    client.ask(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, 0, 0))
    interrupt(client, 0)
    assert not client.waiting


def test_intx_is_told_by_messages_as_a_level(far_client: FakeClient, card: Board) -> None:
    client = far_client
    interrupt(client, 0)
    assert not client.waiting
    client.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, INTX, 0, 1, b"\1"))
    assert told(client.receive()) == (INTX, 0, 1)
    interrupt(client, 1)
    client.write(0, RELEASE, 4, 0)
    assert not client.waiting
    client.write(0, RELEASE, 4, 1)
    assert told(client.receive()) == (INTX, 0, 0)
    card.action = lambda: in_thread(lambda: card.interrupt(0))()
    client.write(0, ACT, 4, 1)
    assert told(client.receive()) == (INTX, 0, 1)


def test_interrupts_by_messages_are_wired_with_a_byte_each(far_client: FakeClient) -> None:
    for data in (b"\1", b"\1\1\1"):
        with pytest.raises(RefusedError, match="EINVAL"):
            far_client.ask(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 0, 2, data))


def test_a_unix_client_that_does_not_ask_for_messages_gets_none(
    client: FakeClient, card: Board
) -> None:
    assert "softcard_interrupts" not in str(QEMU_CAPABILITIES)
    enable_msix(client)
    for vector in range(4):
        interrupt(client, vector)
    assert not client.waiting
