"""The card in C, with a driver that has been written for another one."""

from __future__ import annotations

from tests.host.conftest import ROOT, Modules
from tests.host.programs import compiled

from softcard.guest.qemu import QemuGuest


def test_a_card_in_c_passes_its_drivers_tests_and_is_unplugged(
    guest: QemuGuest, modules: Modules
) -> None:
    since = guest.log.position()
    card = guest.start([compiled(ROOT / "examples/host_c/edu.c")])
    guest.wait_for_path("/sys/bus/pci/devices/1ff00:01:00.0")
    guest.sh(f"insmod {modules('examples/edu_driver')}")
    guest.log.wait_for("factorial of 10: 3628800", position=since)
    guest.log.wait_for("DMA: these words went to the card and came back", position=since)
    guest.sh("kill -INT $(pidof edu)")
    said = bytearray()
    assert card.wait(30, said.extend, said.extend) == 0, said.decode()
    assert b"the card is enumerated" in said
    guest.sh("rmmod softcard_edu; ! test -e /sys/bus/pci/devices/1ff00:01:00.0")
