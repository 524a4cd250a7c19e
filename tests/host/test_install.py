"""softcard host: the module built by DKMS, installed and removed, in a machine of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from tests.host.conftest import Modules

from softcard.guest.guest import Result
from softcard.guest.qemu import QemuGuest
from softcard.guest.qemu.headers import headers

SOFTCARD = [sys.executable, "-B", "-m", "softcard"]
# A compiler on an emulated processor.
LIMIT = 900.0
RULE = "/etc/udev/rules.d/60-softcard.rules"


@pytest.fixture(scope="module")
def bare(machine: QemuGuest, modules: Modules) -> Iterator[QemuGuest]:
    """The machine with headers of its kernel, and without the module."""
    release = machine.kernel.release
    folder = f"/lib/modules/{release}"
    machine.sh(f"""
        for i in 1 2 3 4 5; do rmmod softcard && break; sleep 1; done
        mkdir -p /tmp/over/upper /tmp/over/work
        mount -t overlay -o lowerdir={folder},upperdir=/tmp/over/upper,workdir=/tmp/over/work \
            overlay {folder}
        ln -sfn {headers(machine.kernel)} {folder}/build
    """)
    yield machine
    machine.sh(f"umount -l {folder}; rm -rf /tmp/over; insmod {modules('kernel')}")


@pytest.fixture
def guest(request: pytest.FixtureRequest, bare: QemuGuest) -> QemuGuest:
    return bare


def softcard(guest: QemuGuest, *arguments: str, user: bool = False) -> Result:
    prefix = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"] if user else []
    return guest.run([*prefix, *SOFTCARD, *arguments], check=False, timeout=LIMIT)


def left(guest: QemuGuest) -> str:
    """What there is of an installation."""
    return guest.sh(f"""
        ls -d /usr/src/softcard-* /var/lib/dkms/softcard/* {RULE} \
            /etc/modules-load.d/softcard.conf /lib/modules/*/updates/dkms/softcard.ko* \
            /sys/module/softcard 2>/dev/null
        getent group softcard
        true
    """).stdout


def test_the_module_is_installed_used_and_removed(guest: QemuGuest) -> None:
    before = softcard(guest, "host", "status")
    assert before.status == 1
    assert "not installed" in before.stdout

    done = softcard(guest, "host", "install", "--at-boot")
    assert done.status == 0, done.stderr
    assert "The host bus is ready" in done.stdout
    assert guest.sh("stat -c '%U:%G %a' /dev/softcard").stdout == "root:softcard 660\n"
    assert 'GROUP="softcard", MODE="0660"' in guest.run(["cat", RULE]).stdout
    assert guest.run(["cat", "/etc/modules-load.d/softcard.conf"]).stdout == "softcard\n"

    status = softcard(guest, "host", "status")
    assert status.status == 0, status.stdout
    assert f"for Linux {guest.kernel.release}" in " ".join(status.stdout.split())
    others = softcard(guest, "host", "status", user=True)
    assert others.status == 1
    assert "usermod --append --groups softcard" in " ".join(others.stdout.split())
    assert softcard(guest, "run", "printer", "--bus", "host", "--", "true").status == 0

    # A module that is in use stays.
    guest.sh("sleep 100 3</dev/softcard & echo $! > /tmp/pid")
    for command in ("install", "uninstall"):
        refused = softcard(guest, "host", command)
        assert refused.status == 2
        assert "the kernel module is in use" in refused.stderr
    guest.sh("kill $(cat /tmp/pid)")

    done = softcard(guest, "host", "uninstall")
    assert done.status == 0, done.stderr
    assert left(guest) == ""
    assert softcard(guest, "host", "uninstall").stdout == "Nothing of the host bus is here.\n"


def test_nothing_is_left_of_a_module_that_does_not_build(guest: QemuGuest) -> None:
    guest.sh("mkdir -p /tmp/bin; printf '#!/bin/sh\necho no compiler >&2; exit 1' > /tmp/bin/gcc")
    guest.sh("chmod +x /tmp/bin/gcc; mount --bind /tmp/bin/gcc $(readlink -f $(command -v gcc))")
    try:
        done = softcard(guest, "host", "install")
    finally:
        guest.sh("umount $(readlink -f $(command -v gcc)); rm -r /tmp/bin")
    assert done.status == 1
    assert "softcard: DKMS cannot build the kernel module" in done.stderr
    assert "no compiler" in done.stderr
    assert left(guest) == ""


def test_what_is_missing_is_named(guest: QemuGuest) -> None:
    release = guest.kernel.release
    guest.sh(f"rm /lib/modules/{release}/build")
    done = softcard(guest, "host", "install")
    guest.sh(f"ln -sfn {headers(guest.kernel)} /lib/modules/{release}/build")
    assert done.status == 2
    assert f"apt-get install linux-headers-{release}" in done.stderr
    assert left(guest) == ""


def test_only_root_may_install(guest: QemuGuest) -> None:
    for command in ("install", "uninstall"):
        done = softcard(guest, "host", command, user=True)
        assert done.status == 2
        assert f"softcard: softcard host {command} changes the system: let root" in done.stderr
