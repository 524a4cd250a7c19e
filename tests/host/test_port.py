"""The root port in front of each card, with Linux's own pciehp and aer."""

from __future__ import annotations

import re

from tests.host.conftest import Inside

from softcard.guest.qemu import QemuGuest


def test_both_ends_of_the_link_say_what_the_card_declares(inside: Inside) -> None:
    assert inside("port", "link").stdout.split("\n")[:4] == ["8.0 GT/s PCIe", "x4"] * 2


def test_linux_recovers_from_errors_that_the_card_reports(guest: QemuGuest, inside: Inside) -> None:
    since = guest.log.position()
    inside("port", "errors")
    said = "\n".join(guest.log.since(since))
    # Before 6.8, in other words.
    assert re.search(r"Correct(able|ed) error (message )?received(:| from) 1ff00:01:00.0", said)
    assert said.count("device recovery successful") == 2


def test_a_reset_of_the_function_and_one_of_the_bus_reach_the_card(inside: Inside) -> None:
    inside("port", "resets")


def test_a_slot_can_be_turned_off_and_on(inside: Inside) -> None:
    inside("port", "power")


def test_a_card_that_is_pulled_is_a_surprise_to_the_hotplug_driver(
    guest: QemuGuest, inside: Inside
) -> None:
    since = guest.log.position()
    inside("load", "pull")
    said = "\n".join(guest.log.since(since))
    assert "pciehp: Slot(1): Link Down" in said
    assert "pciehp: Slot(1): Card not present" in said


def test_a_function_that_sleeps_or_has_no_memory_space_answers_nothing(inside: Inside) -> None:
    inside("port", "sleep")
