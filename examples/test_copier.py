"""Tests of the tutorial's card: on the simulated bus, then with its driver in Linux."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from copier import Copier  # type: ignore[import-not-found]

from softcard import DmaError
from softcard.bus.simulated import SimulatedBus
from softcard.bus.uml import UmlBus
from softcard.guest.kernel import Kernel, build_module
from softcard.guest.uml import UmlGuest

ID, CONTROL, STATUS, SOURCE, DESTINATION, LENGTH = 0x00, 0x04, 0x08, 0x10, 0x18, 0x20
START, INTERRUPT_ENABLE = 1, 2
DONE, ERROR = 1, 2


def test_it_copies_and_interrupts(simulated_bus: SimulatedBus) -> None:
    """What a driver does, step by step."""
    device = simulated_bus.plug(Copier())[0]
    device.enable_msi()
    source, destination = simulated_bus.alloc(4096), simulated_bus.alloc(4096)
    source.view[:5] = b"words"

    assert device.read(0, ID) == 0xC0B1E001
    device.write(0, SOURCE, source.address, 8)
    device.write(0, DESTINATION, destination.address, 8)
    device.write(0, LENGTH, 5)
    device.write(0, CONTROL, START | INTERRUPT_ENABLE)
    assert device.read(0, CONTROL) & START
    simulated_bus.run_until(lambda: device.interrupts)

    assert bytes(destination.view[:5]) == b"words"
    assert not device.read(0, CONTROL) & START
    assert device.read(0, STATUS) == DONE
    device.write(0, STATUS, DONE)
    assert device.read(0, STATUS) == 0


def test_a_copy_takes_its_time(simulated_bus: SimulatedBus) -> None:
    """Time is virtual on this bus: it passes when the test says so."""
    device = simulated_bus.plug(Copier(rate=1000))[0]
    memory = simulated_bus.alloc(4096)
    device.write(0, SOURCE, memory.address, 8)
    device.write(0, DESTINATION, memory.address, 8)
    device.write(0, LENGTH, 500)
    device.write(0, CONTROL, START)
    simulated_bus.run_for(0.499)
    assert device.read(0, STATUS) == 0
    simulated_bus.run_for(0.002)
    assert device.read(0, STATUS) == DONE


def test_memory_that_nobody_mapped_is_an_error(simulated_bus: SimulatedBus) -> None:
    """The driver sees a status bit, the test an exception."""
    device = simulated_bus.plug(Copier())[0]
    device.write(0, SOURCE, 0x1000, 8)
    device.write(0, LENGTH, 5)
    device.write(0, CONTROL, START)
    with pytest.raises(DmaError):
        simulated_bus.run_for(1)
    assert device.read(0, STATUS) == DONE | ERROR


@pytest.fixture
def driver(uml_kernel: Kernel) -> Iterator[Path]:
    """The driver, compiled in a folder that the guest sees: it has a /tmp of its own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name, "copier_driver")
        shutil.copytree(Path(__file__).parent / "copier_driver", folder)
        yield build_module(uml_kernel, folder)[0]


def test_the_driver_copies_with_it(guest: UmlGuest, uml_bus: UmlBus, driver: Path) -> None:
    """What was written to the driver's device file comes back by way of the card."""
    uml_bus.plug(Copier())
    guest.load_module(driver)
    guest.wait_for_path("/dev/copier")
    guest.sh("echo these words > /dev/copier")
    assert guest.run(["cat", "/dev/copier"]).stdout == "these words\n"
