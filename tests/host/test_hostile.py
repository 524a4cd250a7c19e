"""What programs may do to the module, and cards to Linux, without harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.host.conftest import LIMIT, ROOT, BootMachine, Inside, Lengths, Modules
from tests.host.programs import compiled

from softcard.guest.qemu import QemuGuest

SOURCE = ROOT / "tests/host/inside/fuzz.c"
THREADS = 3
# Notices and what is less are too many for a serial line; warnings are still seen.
QUIET, USUAL = "dmesg -n 5", "dmesg -n 8"


def fuzz(guest: QemuGuest, seed: int, calls: int, *more: str) -> str:
    """The calls, and how many ended in which way."""
    arguments = [compiled(SOURCE), str(seed), str(calls), str(THREADS), *more]
    guest.sh(QUIET)
    try:
        return guest.run(arguments, timeout=LIMIT + calls / 1000).stdout
    finally:
        guest.sh(USUAL)


def test_no_call_does_harm_and_a_good_card_works_afterwards(
    guest: QemuGuest, inside: Inside, modules: Modules, lengths: Lengths
) -> None:
    inside("leaks", "before")
    guest.load_module(Path(modules("tests/host/modules/softcard_any")))
    said = fuzz(guest, lengths.seed, lengths.calls)
    print(said)
    guest.sh("rmmod softcard_any")
    assert int(said.split()[-2]) >= lengths.calls
    print(inside("leaks", "after").stdout)
    assert inside("printer", modules("examples/printer_driver")).stdout


def test_a_capability_that_reaches_over_the_end_of_the_configuration_space_does_not(
    inside: Inside,
) -> None:
    assert inside("beyond").stdout == "0 accesses beyond the end\n"


@pytest.mark.parametrize("told", [0, 1])
def test_vectors_that_the_module_does_not_know_of_are_refused(
    inside: Inside, modules: Modules, told: int
) -> None:
    said = inside("vectors", modules("tests/uml/modules/softcard_probe"), str(told)).stdout
    assert said == f"msix {told or 'none'}\nmsi none\n"


def test_tables_and_bars_are_where_the_module_was_told(inside: Inside) -> None:
    assert inside("lying").stdout == (
        "Capabilities: [84] MSI-X: Enable+ Count=9 Masked-\n"
        "Vector table: BAR=0 offset=00002000\n"
        "PBA: BAR=0 offset=00003000\n"
    )


@pytest.mark.parametrize("how", ["killed", "asleep"])
def test_no_card_is_waited_for_when_its_program_cannot_answer_any_more(
    guest: QemuGuest, inside: Inside, how: str
) -> None:
    if how == "asleep" and guest.run(["test", "-e", "/sys/power/pm_test"], check=False).status:
        pytest.skip("this kernel cannot sleep")
    inside("ending", how)


def test_error_messages_of_hostile_cards_do_no_harm(
    boot_machine: BootMachine, lengths: Lengths
) -> None:
    # In a machine of its own: Linux leaks such cards.
    guest = boot_machine()
    print(fuzz(guest, lengths.seed, lengths.calls // 10, "errors"))
