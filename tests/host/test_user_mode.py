"""Programs that map a card's BAR and drive it by themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.host.conftest import ROOT, Inside, Modules

from softcard.guest.kernel.cache import cache_folder
from softcard.guest.qemu import QemuGuest


@pytest.fixture(scope="module")
def program() -> str:
    """The driver; in a folder that the guest sees."""
    path = cache_folder("qemu") / "modules" / "user_mode"
    path.parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "tests/host/inside/user_mode.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", path, source], check=True)
    return str(path)


@pytest.fixture
def uio(modules: Modules) -> str:
    return modules("tests/host/modules/softcard_uio")


def test_a_program_that_maps_a_resource_gets_the_cards_answers(
    inside: Inside, program: str
) -> None:
    inside("user_mode", "resource", program)


def test_a_program_that_maps_a_bar_through_uio_gets_them_too(
    guest: QemuGuest, inside: Inside, program: str, uio: str
) -> None:
    guest.sh("modprobe uio")
    inside("user_mode", "uio", program, uio)


def test_a_program_gets_a_bus_error_when_the_card_has_been_pulled(
    guest: QemuGuest, inside: Inside, program: str, uio: str
) -> None:
    guest.sh("modprobe uio")
    inside("user_mode", "gone", program, uio)


def test_vfio_pci_is_refused_with_a_reason(guest: QemuGuest, inside: Inside) -> None:
    since = guest.log.position()
    inside("user_mode", "vfio", str(Path("unused")))
    assert "vfio-pci needs an IOMMU" in "\n".join(guest.log.since(since))
