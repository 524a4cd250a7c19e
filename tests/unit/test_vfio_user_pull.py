"""A card that is pulled from under its clients."""

from __future__ import annotations

import os
from pathlib import Path

from tests.unit.fake_vfio_client import (
    CONFIG,
    INTERRUPT_NOW,
    MSI,
    PAGE,
    RESET,
    SCRATCH,
    Board,
    ClientMemory,
    FakeClient,
    Plugs,
    descriptors,
    raised,
    served,
)

from softcard.bus.simulated import SimulatedBus


def test_the_client_reads_all_ones_and_the_card_is_free(tmp_path: Path) -> None:
    card, plugs = Board(), Plugs()
    with (
        served(card, tmp_path, changed=plugs) as server,
        FakeClient(server.paths[0]) as client,
        ClientMemory() as memory,
    ):
        client.enable()
        client.map(memory, 0x1000)
        client.write(0, SCRATCH, 4, 77)
        server.pull()
        plugs.wait(connected=False)
        assert card.unplugs == 1
        assert card.removed == [(0x1000, PAGE)]
        assert client.read(0, SCRATCH) == 0xFFFFFFFF
        assert client.read_block(CONFIG, 0, 4) == b"\xff" * 4
        assert client.read_block(2, 0, 100) == b"\xff" * 100
        client.write(0, SCRATCH, 4, 1)
        client.ask(RESET)
        client.unmap(0x1000, PAGE)
        assert card.bar0.scratch.value == 77
        with SimulatedBus() as bus:
            device = bus.plug(card)[0]
            assert device.read(0, SCRATCH) == 0


def test_its_interrupts_lead_nowhere(tmp_path: Path) -> None:
    card = Board()
    with served(card, tmp_path) as server, FakeClient(server.paths[0]) as client:
        client.enable()
        event = os.eventfd(0)
        client.wire(MSI, [event])
        client.write(0, INTERRUPT_NOW, 4, 0)
        assert raised(event) == 1
        server.pull()
        card.interrupt(0)
        client.write(0, INTERRUPT_NOW, 4, 0)
        assert raised(event) == 0
        os.close(event)


def test_nobody_else_can_connect_and_a_second_pull_does_nothing(tmp_path: Path) -> None:
    card = Board()
    with served(card, tmp_path) as server, FakeClient(server.paths[0]) as client:
        server.pull()
        server.pull()
        second = FakeClient(server.paths[0], None)
        assert client.read(0, SCRATCH) == 0xFFFFFFFF
        server.stop()
        assert second.hung_up()
        assert client.hung_up()
        second.close()
    assert card.unplugs == 1


def test_a_card_without_a_client_is_just_taken_out(tmp_path: Path) -> None:
    card = Board()
    before = descriptors()
    with served(card, tmp_path) as server:
        server.pull()
        with SimulatedBus() as bus:
            bus.plug(card)
        assert not server.paths[0].exists()
    assert descriptors() <= before + 1
