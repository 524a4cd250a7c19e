"""A disk that comes and goes under load."""

from __future__ import annotations

import pytest
from tests.host.conftest import BootMachine, Inside, Lengths, Modules, run_inside

SECONDS_EACH = 15.0


def limit(lengths: Lengths) -> float:
    """Seconds that the cycles may take."""
    return 60 + SECONDS_EACH * lengths.cycles


def test_disks_that_come_and_go_under_load_leave_nothing(inside: Inside, lengths: Lengths) -> None:
    inside("leaks", "before")
    print(inside("soak", str(lengths.cycles), str(lengths.seed), timeout=limit(lengths)).stdout)
    print(inside("leaks", "after").stdout)


def test_disks_come_and_go_on_one_processor(boot_machine: BootMachine, lengths: Lengths) -> None:
    guest = boot_machine(processors=1)
    run_inside(guest, "leaks", "before")
    cycles = str(lengths.cycles // 2)
    print(run_inside(guest, "soak", cycles, str(lengths.seed), timeout=limit(lengths)).stdout)
    print(run_inside(guest, "leaks", "after").stdout)


@pytest.mark.parametrize("how", ["resumed", "killed", "probing", "looked"])
def test_a_card_that_falls_silent_holds_nobody_up(
    inside: Inside, modules: Modules, how: str
) -> None:
    inside("leaks", "before")
    inside("silent", modules("examples/edu_driver"), how)
    inside("leaks", "after")
