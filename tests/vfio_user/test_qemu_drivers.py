"""The examples' drivers, built for the stock kernel, on their cards in QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from softcard.cards.edu import Edu
from softcard.cards.printer import Printer
from softcard.guest.kernel.cache import cache_folder
from softcard.guest.qemu import QemuBus, QemuGuest
from softcard.guest.qemu.headers import build_stock_module

EXAMPLES = Path(__file__).parents[2] / "examples"


def module(guest: QemuGuest, name: str) -> Path:
    """A driver, in a folder that the guest sees: /tmp is its own."""
    target = cache_folder("qemu") / "modules" / guest.kernel.release / f"examples-{name}"
    return build_stock_module(guest.kernel, EXAMPLES / name, target)


def test_edus_driver_passes_its_own_tests_by_msi(bus: QemuBus, guest: QemuGuest) -> None:
    guest.load_module(module(guest, "edu_driver"))
    since = guest.log.position()
    slot = bus.plug(Edu())
    guest.wait_for_path(f"{slot.sysfs}/driver")
    assert "softcard_edu" in guest.sh(f"readlink {slot.sysfs}/driver").stdout
    assert guest.sh(f"ls {slot.sysfs}/msi_irqs | wc -l").stdout == "1\n"
    assert not any("fail" in line.lower() for line in guest.log.since(since))
    slot.unplug()
    guest.unload_module("softcard_edu")


def test_the_printers_driver_prints(
    bus: QemuBus, guest: QemuGuest, capsys: pytest.CaptureFixture[str]
) -> None:
    guest.load_module(module(guest, "printer_driver"))
    slot = bus.plug(Printer())
    message = f"{slot.sysfs}/message"
    guest.wait_for_path(message)
    guest.write_file(message, "0xdeadbeef")
    guest.run(["cat", f"{slot.sysfs}/vendor"])
    slot.unplug()
    assert "the driver wrote 0xdeadbeef" in capsys.readouterr().out
    guest.unload_module("softcard_printer")
