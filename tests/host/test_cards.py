"""Cards on the bus of the machine that serves them, with its own drivers."""

from __future__ import annotations

import sys

import pytest
from tests.host.conftest import LIMIT, ROOT, Inside, Lengths, Modules

from softcard.guest.qemu import QemuGuest


def test_a_driver_writes_to_the_printer(inside: Inside, modules: Modules) -> None:
    said = inside("printer", modules("examples/printer_driver")).stdout
    assert said == "the driver wrote 0xcafef00d\n"


def test_edu_passes_its_drivers_tests(guest: QemuGuest, inside: Inside, modules: Modules) -> None:
    since = guest.log.position()
    inside("edu", modules("examples/edu_driver"))
    said = [line for line in guest.log.since(since) if "softcard_edu" in line]
    assert said
    assert "fail" not in "\n".join(said).lower()


@pytest.mark.parametrize(
    ("kind", "name", "counts"),
    [("msix", "MSI-X", [100] * 4), ("msi", "MSI", [400]), ("intx", "INTx", [10])],
)
def test_every_interrupt_of_every_kind_arrives_and_blocks_are_copied(
    inside: Inside, modules: Modules, kind: str, name: str, counts: list[int]
) -> None:
    said = inside("probe", modules("tests/uml/modules/softcard_probe"), kind).stdout
    assert said.splitlines()[0] == name
    assert said.splitlines()[1] == str(counts)
    assert said.splitlines()[2] == "fine"


def test_nvme_has_a_vector_for_each_queue_and_keeps_a_file_system(inside: Inside) -> None:
    assert inside("nvme").stdout == "3 vectors\n"


def test_no_write_of_a_burst_is_lost_or_overtaken(
    inside: Inside, modules: Modules, lengths: Lengths
) -> None:
    writes = lengths.writes
    driver = modules("tests/host/modules/softcard_burst")
    said = inside("burst", driver, str(writes), timeout=LIMIT + writes / 1000).stdout
    print(said)
    assert f"burst {writes} 0\n" in said
    assert f"atomic {writes} 0\n" in said
    assert f"both {writes} {writes} 0\n" in said


def test_a_disk_that_is_pulled_under_load_is_gone(guest: QemuGuest, inside: Inside) -> None:
    inside("load", "pull")
    assert "nvme0n1" not in guest.run(["lsblk"]).stdout


@pytest.mark.parametrize("turn", range(3))
def test_a_disk_whose_server_is_killed_under_load_is_gone(guest: QemuGuest, turn: int) -> None:
    script = f"""
        cd {ROOT}; rm -f /tmp/said; touch /tmp/said
        PYTHONPATH=src:. {sys.executable} -B -m tests.host.inside.load >> /tmp/said &
        while ! grep -q loaded /tmp/said; do sleep 0.1; done
        kill -9 $!
        while [ -e /sys/bus/pci/devices/1ff00:01:00.0 ]; do sleep 0.1; done
    """
    guest.sh(script, timeout=LIMIT)
    assert "nvme0n1" not in guest.run(["lsblk"]).stdout


def test_a_program_is_woken_after_it_was_woken_for_nothing(inside: Inside) -> None:
    assert inside("woken").stdout == "woken\n"


def test_what_is_malformed_is_refused(inside: Inside) -> None:
    assert "calls" in inside("malformed").stdout


def test_nobody_but_root_may_make_a_card(guest: QemuGuest) -> None:
    done = guest.sh("setpriv --reuid 1000 --clear-groups cat /dev/softcard", check=False)
    assert done.status
    assert "Permission denied" in done.stderr


def test_the_module_can_be_unloaded_and_loaded_again(guest: QemuGuest, modules: Modules) -> None:
    # Cards of the tests before may still be on their way out.
    guest.sh("until grep -qx 0 /sys/module/softcard/refcnt; do sleep 0.01; done; rmmod softcard")
    assert guest.run(["test", "-e", "/dev/softcard"], check=False).status
    guest.sh(f"insmod {modules('kernel')}")
    guest.wait_for_path("/dev/softcard")
