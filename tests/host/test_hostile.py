"""What programs may do to the module, and cards to Linux, without harm."""

from __future__ import annotations

from tests.host.conftest import LIMIT, ROOT, Inside, Lengths, Modules
from tests.host.programs import compiled

from softcard.guest.qemu import QemuGuest

SOURCE = ROOT / "tests/host/inside/fuzz.c"
THREADS = 3
# Notices and what is less are too many for a serial line; warnings are still seen.
QUIET, USUAL = "dmesg -n 5", "dmesg -n 8"


def fuzz(guest: QemuGuest, seed: int, calls: int) -> str:
    """The calls, and how many ended in which way."""
    arguments = [compiled(SOURCE), str(seed), str(calls), str(THREADS)]
    guest.sh(QUIET)
    try:
        return guest.run(arguments, timeout=LIMIT + calls / 1000).stdout
    finally:
        guest.sh(USUAL)


def test_no_call_does_harm_and_a_good_card_works_afterwards(
    guest: QemuGuest, inside: Inside, modules: Modules, lengths: Lengths
) -> None:
    inside("leaks", "before")
    said = fuzz(guest, lengths.seed, lengths.calls)
    print(said)
    assert int(said.split()[-2]) >= lengths.calls
    print(inside("leaks", "after").stdout)
    assert inside("printer", modules("examples/printer_driver")).stdout
