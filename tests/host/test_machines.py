"""Cards on machines of other kinds than the one that most tests share."""

from __future__ import annotations

import pytest
from tests.host.conftest import FOUR_LEVELS, BootMachine, Modules, run_inside


@pytest.mark.parametrize(("processors", "cpu"), [(1, FOUR_LEVELS), (2, FOUR_LEVELS), (1, None)])
def test_drivers_work_whatever_the_processors_and_the_page_tables(
    boot_machine: BootMachine, modules: Modules, processors: int, cpu: str | None
) -> None:
    guest = boot_machine(processors=processors, cpu=cpu)
    assert guest.run(["nproc"]).stdout == f"{processors}\n"
    if cpu == FOUR_LEVELS:
        assert "la57" not in guest.run(["cat", "/proc/cpuinfo"]).stdout.split()
    run_inside(guest, "printer", modules("examples/printer_driver"))
    # One for each processor's queue, and that of the administrator.
    assert run_inside(guest, "nvme").stdout == f"{processors + 1} vectors\n"
