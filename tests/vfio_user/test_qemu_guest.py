"""A stock Linux in QEMU is a guest as the embedded one is; and what is said where it is not."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from softcard import GuestError, PlugError, UsageError
from softcard.cards.printer import Printer
from softcard.guest.guest import CommandError
from softcard.guest.qemu import (
    QemuBus,
    QemuError,
    QemuGuest,
    kernel,
    machine,
    program,
    stock_kernel,
)
from softcard.guest.qemu import guest as qemu_guest


@pytest.fixture
def seen_folder() -> Iterator[Path]:
    """A folder of this machine that the guest sees."""
    with tempfile.TemporaryDirectory(prefix="softcard-test-", dir="/var/tmp") as name:
        yield Path(name)


def test_it_is_the_kernel_that_was_fetched(guest: QemuGuest) -> None:
    assert guest.run(["uname", "-r"]).stdout == f"{kernel.need_kernel().release}\n"
    assert any("Linux version" in line for line in guest.log.lines)


def test_a_command_gives_its_output_errors_and_status(guest: QemuGuest) -> None:
    result = guest.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (result.stdout, result.stderr, result.status) == ("out\n", "err\n", 3)
    with pytest.raises(CommandError, match="exited with status 3"):
        guest.sh("exit 3")


def test_input_of_any_size_reaches_a_command_that_reads_late(guest: QemuGuest) -> None:
    data = os.urandom(1 << 20)
    digest = guest.run(["sh", "-c", "sleep 0.5; sha256sum"], input=data).stdout.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()


def test_large_output_comes_whole(guest: QemuGuest) -> None:
    output = guest.sh("seq 1 200000").stdout
    assert output == "".join(f"{n}\n" for n in range(1, 200001))


def test_commands_run_at_the_same_time(guest: QemuGuest) -> None:
    guest.sh("mkfifo /tmp/a /tmp/b")
    with ThreadPoolExecutor() as pool:
        reader = pool.submit(guest.sh, "cat /tmp/a; echo back > /tmp/b")
        assert guest.sh("echo forth > /tmp/a; cat /tmp/b").stdout == "back\n"
        assert reader.result().stdout == "forth\n"


def test_the_kernels_own_modules_are_found(guest: QemuGuest) -> None:
    guest.sh("modprobe dummy && rmmod dummy")
    found = guest.sh("modinfo -n dummy").stdout.strip()
    guest.sh(f"xz -dc {found} > /tmp/dummy.ko")
    guest.load_module(Path("/tmp/dummy.ko"), "numdummies=2")
    assert guest.sh("ls -d /sys/class/net/dummy*").stdout.split()[1].endswith("dummy1")
    guest.unload_module("dummy")


def test_the_machines_files_are_there_and_stay_as_they_are(
    guest: QemuGuest, seen_folder: Path
) -> None:
    (seen_folder / "file").write_text("before")
    assert guest.run(["cat", str(seen_folder / "file")]).stdout == "before"
    guest.sh(f"echo changed > {seen_folder}/new; rm -rf /etc/passwd")
    assert not (seen_folder / "new").exists()
    assert Path("/etc/passwd").exists()


def test_what_changes_on_the_machine_is_seen(guest: QemuGuest, seen_folder: Path) -> None:
    file = seen_folder / "file"
    for text in ("first", "second, longer", "3rd"):
        file.write_text(text)
        assert guest.run(["cat", str(file)]).stdout == text
    other = seen_folder / "other"
    other.write_text("moved into its place")
    other.rename(file)
    assert guest.run(["cat", str(file)]).stdout == "moved into its place"
    assert guest.run(["ls", str(seen_folder)]).stdout == "file\n"
    file.unlink()
    assert guest.run(["cat", str(file)], check=False).status != 0


def test_a_program_that_was_missing_before_is_found(guest: QemuGuest, seen_folder: Path) -> None:
    script = seen_folder / "script"
    assert guest.run([str(script)], check=False).status == 127
    script.write_text("#!/bin/sh\necho here\n")
    script.chmod(0o755)
    assert guest.run([str(script)]).stdout == "here\n"


def test_a_reboot_ends_what_runs_and_the_next_command_works(guest: QemuGuest) -> None:
    guest.sh("echo 1 > /tmp/file")
    sleeping = guest.start(["sleep", "1000"])
    guest.reset()
    with pytest.raises(GuestError, match="started anew"):
        sleeping.wait(1)
    assert guest.sh("ls /tmp/file", check=False).status != 0
    data = os.urandom(100000)
    assert guest.run(["sha256sum"], input=data).stdout.startswith(hashlib.sha256(data).hexdigest())


def test_a_bus_has_one_guest_at_a_time(guest: QemuGuest) -> None:
    with pytest.raises(PlugError, match="a guest is running"):
        guest.bus.boot()


@pytest.mark.allow_kernel_problems
def test_a_panic_is_reported_and_the_bus_outlives_its_guest(guest: QemuGuest) -> None:
    slot = guest.bus.plug(Printer())
    with pytest.raises(GuestError, match=r"the guest has died(.|\n)*sysrq triggered crash"):
        guest.write_file("/proc/sysrq-trigger", "c")
    assert not guest.alive
    with pytest.raises(GuestError, match="the guest has died"):
        guest.run(["true"])
    guest.close()
    again = guest.bus.boot()
    assert again.sh(f"cat {slot.sysfs}/vendor").stdout == "0x1ded\n"
    slot.unplug()


# What goes wrong.


def test_a_guest_that_does_not_come_up_is_explained(
    qemu_bus: QemuBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_guest, "BOOT_TIMEOUT", 3.0)
    qemu_bus.arguments = ("initcall_debug", "rdinit=/nothing", "root=/dev/nothing", "rootwait")
    with pytest.raises(GuestError, match=r"not come up within 3 s; its log ends with:\n\["):
        qemu_bus.boot()
    assert qemu_bus.guest is None


def test_a_kernel_that_cannot_find_its_root_is_explained(qemu_bus: QemuBus) -> None:
    qemu_bus.kernel = replace(kernel.need_kernel(), modules=None)
    with pytest.raises(GuestError, match=r"cannot mount this machine's root(.|\n)*Kernel panic"):
        qemu_bus.boot()


def test_a_file_that_is_no_kernel_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="/etc/passwd is no Linux kernel"):
        QemuBus(kernel=Path("/etc/passwd"))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        QemuBus(kernel=tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"has no modules\.dep"):
        stock_kernel(kernel.need_kernel().image, tmp_path)


def test_a_qemu_that_ends_at_once_is_explained(
    qemu_bus: QemuBus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "qemu"
    broken.write_text("#!/bin/sh\necho I am no QEMU >&2\nexit 7\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    found = program.need_qemu()
    monkeypatch.setattr(
        qemu_guest, "need_qemu", lambda: replace(found, command=(str(broken),), environment={})
    )
    monkeypatch.setattr(qemu_guest, "accelerator_for", lambda qemu, kernel: machine.TCG)
    with pytest.raises(GuestError, match=r"QEMU has ended \(status 7\)(.|\n)*I am no QEMU"):
        qemu_bus.boot()


def test_no_qemu_and_no_kernel_are_one_sentence_each(
    qemu_bus: QemuBus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = program.need_qemu()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QemuError, match="there is no qemu-system-x86_64 here: softcard qemu get"):
        qemu_bus.boot()
    monkeypatch.setattr(qemu_guest, "need_qemu", lambda: found)
    with pytest.raises(QemuError, match="no kernel for QEMU has been fetched yet: softcard qemu"):
        qemu_bus.boot()


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(UsageError, match=re.escape("too few for a guest")):
        QemuBus(memory=1 << 20)
