"""Interrupts from several processors at once."""

from __future__ import annotations

from tests.host.conftest import ROOT, Inside, Lengths, Modules
from tests.host.programs import compiled

# A tenth of a millisecond each; the watchdog barks after four seconds.
STORM, LONG_STORM = 5_000, 100_000


def test_each_interrupt_of_two_processors_is_handled(
    inside: Inside, modules: Modules, lengths: Lengths
) -> None:
    program = compiled(ROOT / "tests/host/inside/inject.c")
    storm = LONG_STORM if lengths.injections > STORM * 100 else STORM
    driver = modules("tests/host/modules/softcard_count")
    print(inside("inject", driver, program, str(lengths.injections), str(storm)).stdout)
