"""Slots of the uml bus: plug, unplug and pull, before Linux boots and while it runs."""

from __future__ import annotations

import gc
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.uml.cards import ProbeCard, Slow
from tests.uml.conftest import Modules
from tests.uml.resources import assert_no_growth, open_files, resources, threads

from softcard import Bar, Card, Function, GuestError, PlugError, Register
from softcard.bus.uml import UmlBus, UmlSlot
from softcard.cards.edu import Edu
from softcard.cards.printer import Printer
from softcard.guest.uml import UmlGuest
from softcard.testing.plugin import BootGuest

FILES = "/sys/kernel/debug/softcard_probe"


def cards_in(guest: UmlGuest) -> dict[str, str]:
    """`vendor:device` of the cards that the guest sees, by address."""
    lines = guest.run(["lspci", "-n", "-D"]).stdout.splitlines()
    return {line.split()[0]: line.split()[2] for line in lines}


def test_cards_are_there_when_the_guest_has_booted(uml_bus: UmlBus, boot_guest: BootGuest) -> None:
    slots = [uml_bus.plug(Printer()), uml_bus.plug(Edu())]
    guest = boot_guest(uml_bus)
    assert cards_in(guest) == {slots[0].address: "1ded:0001", slots[1].address: "1234:11e8"}


def test_a_card_is_there_when_plug_returns(guest: UmlGuest, uml_bus: UmlBus) -> None:
    slot = uml_bus.plug(Printer())
    assert cards_in(guest) == {slot.address: "1ded:0001"}


@pytest.mark.parametrize("how", [UmlSlot.unplug, UmlSlot.pull])
def test_a_card_is_gone_when_it_was_taken_out_and_can_be_plugged_in_again(
    guest: UmlGuest, uml_bus: UmlBus, how: Callable[[UmlSlot], None]
) -> None:
    card = Printer()
    slot = uml_bus.plug(card)
    how(slot)
    assert cards_in(guest) == {}
    with pytest.raises(PlugError, match="is empty"):
        how(slot)
    assert uml_bus.plug(card).number == slot.number
    assert len(cards_in(guest)) == 1


def test_eight_cards_fit_and_a_ninth_is_refused(guest: UmlGuest, uml_bus: UmlBus) -> None:
    slots = [uml_bus.plug(Printer()) for _ in range(8)]
    assert set(cards_in(guest)) == {slot.address for slot in slots}
    ninth = Printer()
    with pytest.raises(PlugError, match="all 8 slots of the uml bus are taken"):
        uml_bus.plug(ninth)
    slots[3].unplug()
    assert uml_bus.plug(ninth).number == 3
    assert len(cards_in(guest)) == 8


def test_eight_cards_at_boot(uml_bus: UmlBus, boot_guest: BootGuest) -> None:
    for _ in range(8):
        uml_bus.plug(Printer())
    with pytest.raises(PlugError, match="all 8 slots"):
        uml_bus.plug(Printer())
    assert len(cards_in(boot_guest(uml_bus))) == 8


def test_slots_are_independent(guest: UmlGuest, uml_bus: UmlBus) -> None:
    first, second, third = (uml_bus.plug(Printer()) for _ in range(3))
    second.pull()
    assert set(cards_in(guest)) == {first.address, third.address}
    assert guest.sh(f"cat {first.sysfs}/vendor {third.sysfs}/vendor").stdout == "0x1ded\n" * 2


@pytest.mark.parametrize(("how", "asked"), [(UmlSlot.unplug, 1), (UmlSlot.pull, 0)])
def test_the_driver_reaches_the_card_while_it_is_unplugged_and_not_when_it_was_pulled(
    guest: UmlGuest,
    uml_bus: UmlBus,
    modules: Modules,
    how: Callable[[UmlSlot], None],
    asked: int,
) -> None:
    guest.load_module(modules("softcard_probe"))
    card = ProbeCard()
    slot = uml_bus.plug(card)
    guest.wait_for_path(f"{FILES}/ring")
    how(slot)
    guest.wait_for_path(FILES, exists=False)
    assert card.bar0.farewell.value == asked


def test_a_card_that_answers_late_is_plugged_in_all_the_same(
    guest: UmlGuest, uml_bus: UmlBus
) -> None:
    slot = uml_bus.plug(Slow())
    assert cards_in(guest) == {slot.address: "1ded:0f02"}


def test_a_rescan_after_a_removal_in_the_guest_finds_the_card_again(
    guest: UmlGuest, uml_bus: UmlBus
) -> None:
    slot = uml_bus.plug(Printer())
    guest.write_file(f"{slot.sysfs}/remove", "1")
    guest.wait_for_path(slot.sysfs, exists=False)
    guest.write_file("/sys/bus/pci/rescan", "1")
    guest.wait_for_path(slot.sysfs)
    slot.unplug()


class Two(Card):
    vendor_id, device_id = 0x1DED, 0x0F10

    class Second(Function):
        vendor_id, device_id = 0x1DED, 0x0F11

    more_functions = (Second,)


class Huge(Card):
    vendor_id, device_id = 0x1DED, 0x0F12

    class bar0(Bar, size=1 << 30, bits=64):
        nothing = Register(0)


@pytest.mark.parametrize(("card", "feature"), [(Two, "functions"), (Huge, "BAR 0")])
def test_what_the_bus_cannot_do_is_said_when_the_card_is_plugged_in(
    uml_bus: UmlBus, card: type[Card], feature: str
) -> None:
    with pytest.raises(PlugError, match=f"{feature}.*the uml bus"):
        uml_bus.plug(card())
    assert uml_bus.slots == []


def test_nobody_at_a_socket_is_said(guest: UmlGuest, uml_bus: UmlBus, tmp_path: Path) -> None:
    with pytest.raises(PlugError, match="no card is served at"):
        uml_bus.plug_socket(tmp_path / "nobody")


# What goes wrong in a card.


@pytest.fixture
def probe(guest: UmlGuest, uml_bus: UmlBus, modules: Modules) -> ProbeCard:
    """A card with its driver."""
    guest.load_module(modules("softcard_probe"))
    card = ProbeCard()
    uml_bus.plug(card)
    guest.wait_for_path(f"{FILES}/ring")
    return card


@pytest.mark.allow_card_errors
def test_a_handler_that_raises_reads_as_all_ones(guest: UmlGuest, probe: ProbeCard) -> None:
    assert guest.sh(f"cat {FILES}/broken").stdout == "0xffffffff\n"
    assert probe.endpoint.errors[-1].doing == "read of 4 bytes at BAR 0 + 0xc (broken)"
    assert guest.sh(f"echo 1 > {FILES}/ring; cat {FILES}/broken").stdout == "0xffffffff\n"
    assert probe.rung == 1


@pytest.mark.allow_card_errors
def test_a_read_that_is_not_answered_in_time_reads_as_all_ones(
    boot_guest: BootGuest, modules: Modules
) -> None:
    with UmlBus(completion_timeout=0.2) as bus:
        guest = boot_guest(bus)
        guest.load_module(modules("softcard_probe"))
        card = ProbeCard()
        slot = bus.plug(card)
        guest.wait_for_path(f"{FILES}/ring")
        assert guest.sh(f"cat {FILES}/stuck").stdout == "0xffffffff\n"
        assert guest.sh(f"cat {FILES}/stuck {FILES}/broken").stdout == "0xffffffff\n" * 2
        card.gate.set()
        guest.sh(f"echo 3 > {FILES}/ring")
        # The write is posted: what asks the card something afterwards comes behind it.
        slot.unplug()
        assert card.rung == 3


@pytest.mark.allow_card_errors
def test_a_card_that_does_not_return_can_be_pulled(
    guest: UmlGuest, probe: ProbeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softcard.bus.uml.server.STOP_TIMEOUT", 0.1)
    reading = guest.start(["cat", f"{FILES}/stuck"])
    assert probe.entered.wait(10)
    (slot,) = guest.bus.slots
    slot.pull()
    reading.wait(10)
    guest.wait_for_path(FILES, exists=False)
    probe.gate.set()


# A hundred times.


@pytest.mark.parametrize("how", [UmlSlot.unplug, UmlSlot.pull])
def test_a_hundred_cycles_leave_nothing_behind(
    guest: UmlGuest, uml_bus: UmlBus, modules: Modules, how: Callable[[UmlSlot], None]
) -> None:
    guest.load_module(modules("softcard_probe"))

    def cycles(count: int) -> None:
        for _ in range(count):
            slot = uml_bus.plug(ProbeCard())
            guest.wait_for_path(f"{FILES}/ring")
            how(slot)

    cycles(20)
    before = resources(guest)
    cycles(100)
    assert_no_growth(before, resources(guest))


def test_nothing_is_left_over_after_close() -> None:
    def processes() -> set[str]:
        found = subprocess.run(
            ["pgrep", "-f", "softcard-guest-"], capture_output=True, text=True, check=False
        )
        return set(found.stdout.split())

    def files() -> set[Path]:
        folders = {Path(tempfile.gettempdir()), Path("/dev/shm"), Path.home()}
        return {path for folder in folders for path in folder.glob("*")}

    gc.collect()
    before = processes(), files(), open_files(), threads()
    bus = UmlBus()
    bus.plug(Printer())
    guest = UmlGuest(bus)
    bus.plug(Edu())
    guest.start(["sleep", "1000"])
    assert len(processes()) > len(before[0])
    guest.close()
    bus.close()
    gc.collect()
    assert processes() <= before[0]
    assert files() <= before[1]
    assert open_files() <= before[2]
    assert threads() <= before[3]


@pytest.mark.allow_kernel_problems
def test_a_boot_that_fails_leaves_nothing(boot_guest: BootGuest) -> None:
    before = set(Path(tempfile.gettempdir()).glob("softcard*"))
    with pytest.raises(GuestError, match="the guest has died"):
        boot_guest(arguments=["rootfstype=ext4", "root=/dev/nowhere"])
    assert set(Path(tempfile.gettempdir()).glob("softcard*")) <= before
