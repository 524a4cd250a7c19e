"""softcard host: the module built by DKMS, installed and removed, in a machine of its own.

A compiler takes minutes on an emulated processor. What DKMS has built there was built here before;
and that DKMS builds it is seen here, in folders of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.host.conftest import LIMIT, Modules, Shared

from softcard.guest.guest import Result
from softcard.guest.qemu import QemuGuest, StockKernel
from softcard.guest.qemu.headers import headers

SOFTCARD = [sys.executable, "-B", "-m", "softcard"]
RULE = "/etc/udev/rules.d/60-softcard.rules"


# What make gives is a module that was built here, unless the test wants it to fail.
MAKE = """#!/bin/sh
for word; do
    case $word in
    clean) exit ;;
    M=*) target=${word#M=} ;;
    esac
done
[ -n "$target" ] || exec /tmp/make "$@"
[ ! -e /tmp/broken ] || { echo "no compiler"; exit 2; }
exec cp MODULE "$target/softcard.ko"
"""
BUILD = """
from softcard.bus.host.module import dkms, source
import os, pathlib, sys
release, headers = sys.argv[1:]
folder = pathlib.Path("/lib/modules", release)
folder.mkdir()
(folder / "build").symlink_to(headers)
dkms.install(source.version(), release)
print(dkms.builds())
print([path.name for path in folder.glob("updates/dkms/*")], dkms.key())
dkms.remove(source.version())
print(dkms.builds(), list(folder.glob("updates/dkms/*")), os.listdir(dkms.SOURCES))
"""
OWN = ("/var/lib/dkms", "/usr/src", "/lib/modules")


@pytest.fixture(scope="module")
def bare(shared: Shared, modules: Modules) -> Iterator[QemuGuest]:
    """The machine with headers of its kernel, without the module, and with a user 1000 who may run
    Python. It has no other modules either: depmod takes minutes for all."""
    machine, _ = shared.guest()
    release = machine.kernel.release
    folder = f"/lib/modules/{release}"
    machine.sh(f"""
        for i in 1 2 3 4 5; do rmmod softcard && break; sleep 1; done
        mkdir /tmp/own; cp {folder}/modules.builtin* {folder}/modules.order /tmp/own
        mount -t tmpfs own {folder}; mv /tmp/own/* {folder}
        ln -s {headers(machine.kernel)} {folder}/build
        cp /usr/bin/make /tmp/make
    """)
    make = MAKE.replace("MODULE", modules("kernel"))
    machine.run(["sh", "-c", "cat > /usr/bin/make"], input=make.encode())
    python = Path(sys.executable).resolve()
    machine.run(["chmod", "o+x", *map(str, python.parents[:-1])])
    yield machine
    machine.close()  # it is of no use to other tests


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
    guest.sh("touch /tmp/broken")
    done = softcard(guest, "host", "install")
    guest.sh("rm /tmp/broken")
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


@pytest.mark.skipif(
    os.geteuid() != 0 and not Path("/lib/modules").is_dir(), reason="/lib/modules does not exist"
)
def test_dkms_builds_and_signs_the_module(kernel: StockKernel) -> None:
    if "CONFIG_MODULE_SIG=y" not in Path(headers(kernel), ".config").read_text().splitlines():
        pytest.skip("this kernel has no signatures")
    mounts = " && ".join(f"mkdir -p {folder} && mount -t tmpfs own {folder}" for folder in OWN)
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-ec", f'{mounts}; exec "$@"', "sh",
         sys.executable, "-c", BUILD, kernel.release, headers(kernel)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built, files, left_over = done.stdout.splitlines()
    assert f"kernel='{kernel.release}', state='installed'" in built
    assert "['softcard.ko" in files
    assert files.endswith("/var/lib/dkms/mok.pub")
    assert left_over == "[] [] []"
