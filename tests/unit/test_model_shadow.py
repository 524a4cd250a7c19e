"""Memory that the driver reads and the card keeps up to date."""

from __future__ import annotations

from softcard import Bar, Card, Memory, Shadow
from softcard.bus.simulated import SimulatedBus


class Gauge(Card):
    vendor_id, device_id = 0x1DED, 0x0F21

    class bar0(Bar, size=0x4000):
        memory = Memory(0x1000, 0x1000)
        status = Shadow(0x2000, 0x1000)

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[int, int, int]] = []

    @bar0.status.on_write
    def command(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def test_the_driver_reads_what_the_card_has_stored() -> None:
    with SimulatedBus() as bus:
        card = Gauge()
        device = bus.plug(card)[0]
        card.bar0.status.view[4:8] = b"\1\2\3\4"
        assert device.read(0, 0x2004, 4) == 0x04030201
        assert device.read_block(0, 0x2000, 10) == bytes(4) + b"\1\2\3\4" + bytes(2)


def test_what_the_driver_writes_is_not_stored_but_given_to_the_card() -> None:
    with SimulatedBus() as bus:
        card = Gauge()
        device = bus.plug(card)[0]
        device.write(0, 0x2010, 0xABCD, 2)
        device.write_block(0, 0x1FFE, bytes(range(1, 9)))
        assert card.written == [(0x10, 2, 0xABCD), (0, 4, 0x06050403), (4, 2, 0x0807)]
        assert device.read(0, 0x2010, 2) == 0
        assert bytes(card.bar0.memory.view[-2:]) == b"\1\2"


def test_two_cards_have_shadows_of_their_own() -> None:
    one, other = Gauge(), Gauge()
    one.bar0.status.view[0] = 1
    assert other.bar0.status.view[0] == 0
    one.bar0.status.write(0, 1, 5)
    assert (one.written, other.written) == ([(0, 1, 5)], [])


def test_a_bus_that_shares_it_is_told_that_it_may_not_be_written_there() -> None:
    shared = Gauge().link.shared_ranges()
    assert [(area.offset, area.shadow) for area in shared] == [(0x1000, False), (0x2000, True)]
