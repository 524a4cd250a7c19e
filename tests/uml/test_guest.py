"""Running commands in the guest."""

from __future__ import annotations

import hashlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.uml.conftest import Modules

from softcard import GuestError, UsageError
from softcard.bus.uml import UmlBus
from softcard.guest.guest import CommandError
from softcard.guest.uml import UmlGuest
from softcard.testing.plugin import BootGuest


def test_a_command_gives_its_output_errors_and_status(guest: UmlGuest) -> None:
    result = guest.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (result.stdout, result.stderr, result.status) == ("out\n", "err\n", 3)
    assert guest.run(["uname", "-s"]).stdout == "Linux\n"


def test_a_failed_command_raises_with_what_it_said(guest: UmlGuest) -> None:
    with pytest.raises(CommandError, match=r"sh -c .* exited with status 3: it broke") as caught:
        guest.sh("echo it broke >&2; exit 3")
    assert caught.value.result.status == 3


def test_a_command_that_does_not_exist_is_named(guest: UmlGuest) -> None:
    result = guest.run(["no-such-command", "x"], check=False)
    assert result.status == 127
    assert "no-such-command: No such file or directory" in result.stderr
    assert guest.run(["/etc/passwd"], check=False).status == 126


def test_a_signal_is_a_status_of_128_and_more(guest: UmlGuest) -> None:
    assert guest.sh("kill -TERM $$", check=False).status == 128 + signal.SIGTERM


def test_input_reaches_the_command(guest: UmlGuest) -> None:
    data = bytes(range(256)) * 4096
    digest = guest.run(["sha256sum"], input=data).stdout.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()
    assert guest.run(["cat"]).stdout == ""


def test_a_command_that_does_not_read_its_input_is_no_problem(guest: UmlGuest) -> None:
    assert guest.run(["true"], input=bytes(1 << 20)).status == 0


def test_large_output_comes_whole(guest: UmlGuest) -> None:
    result = guest.sh("seq 1 400000; seq 1 100000 >&2")
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 400001))
    assert result.stderr == "".join(f"{n}\n" for n in range(1, 100001))


def test_a_command_that_takes_too_long_is_killed(guest: UmlGuest) -> None:
    start = time.monotonic()
    with pytest.raises(GuestError, match=r"sleep 1234 has not ended within 0.3 s"):
        guest.run(["sleep", "1234"], timeout=0.3)
    assert time.monotonic() - start < 10
    guest.sh("while pgrep -f '[s]leep 1234'; do sleep 0.05; done")


def test_a_background_child_does_not_hold_a_command(guest: UmlGuest) -> None:
    assert guest.sh("sleep 100 & echo started").stdout == "started\n"


def test_commands_run_at_the_same_time(guest: UmlGuest) -> None:
    guest.sh("mkfifo /tmp/a /tmp/b")
    with ThreadPoolExecutor() as pool:
        reader = pool.submit(guest.sh, "cat /tmp/a; echo back > /tmp/b")
        assert guest.sh("echo forth > /tmp/a; cat /tmp/b").stdout == "back\n"
        assert reader.result().stdout == "forth\n"


def test_environment_and_folder_are_the_callers_choice(guest: UmlGuest) -> None:
    result = guest.run(
        ["sh", "-c", "pwd; echo $CARD; echo $HOME"], env={"CARD": "nvme"}, cwd="/usr"
    )
    assert result.stdout == "/usr\nnvme\n/tmp\n"


def test_output_is_streamed_to_our_own(guest: UmlGuest, capfd: pytest.CaptureFixture[str]) -> None:
    assert guest.stream(["sh", "-c", "echo out; echo err >&2; exit 5"]) == 5
    assert capfd.readouterr() == ("out\n", "err\n")


def test_the_kernel_log_is_a_stream(guest: UmlGuest) -> None:
    assert any(line.find("Linux version 7") > 0 for line in guest.log.lines)
    position = guest.log.position()
    guest.write_file("/dev/kmsg", "hello from the test\n")
    assert "hello from the test" in guest.log.wait_for("hello", position=position)


def test_memory_is_what_was_asked_for(boot_guest: BootGuest) -> None:
    small = boot_guest(memory=96 << 20)
    total = int(small.sh("grep MemTotal /proc/meminfo").stdout.split()[1])
    assert 64 << 10 < total < 96 << 10
    with pytest.raises(UsageError, match="too few"):
        boot_guest(memory=1 << 20)


def test_two_guests_run_side_by_side(boot_guest: BootGuest) -> None:
    first, second = boot_guest(), boot_guest()
    first.sh("echo first > /tmp/who")
    second.sh("echo second > /tmp/who")
    assert first.sh("cat /tmp/who").stdout == "first\n"


def test_a_guest_without_a_bus_has_one(boot_guest: BootGuest) -> None:
    assert isinstance(boot_guest().bus, UmlBus)


def test_modules_are_loaded_with_parameters_and_unloaded(guest: UmlGuest, modules: Modules) -> None:
    guest.load_module(modules("softcard_probe"), "kind=msi")
    assert guest.sh("cat /sys/module/softcard_probe/parameters/kind").stdout == "msi\n"
    guest.unload_module("softcard_probe")
    assert "softcard_probe" not in guest.sh("cat /proc/modules").stdout


def test_a_module_that_the_kernel_refuses_is_explained(guest: UmlGuest, modules: Modules) -> None:
    module = modules("softcard_probe")
    guest.load_module(module)
    with pytest.raises(GuestError, match="File exists"):
        guest.load_module(module)
    with pytest.raises(GuestError, match="No such file"):
        guest.load_module(Path("/nowhere.ko"))
    broken = module.with_name("broken.ko")
    broken.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(GuestError, match=r"Exec format error|Invalid"):
        guest.load_module(broken)


# Death.


def assert_dead(guest: UmlGuest) -> None:
    with pytest.raises(GuestError, match="the guest has died"):
        guest.run(["true"])
    assert not guest.alive


@pytest.mark.allow_kernel_problems
def test_a_panic_is_reported_with_the_end_of_the_log(guest: UmlGuest) -> None:
    with pytest.raises(GuestError, match=r"the guest has died(.|\n)*sysrq triggered crash"):
        guest.write_file("/proc/sysrq-trigger", "c")
    assert_dead(guest)
    assert guest.log.problems()


@pytest.mark.allow_kernel_problems
def test_a_command_that_runs_when_the_guest_dies_ends(guest: UmlGuest) -> None:
    with ThreadPoolExecutor() as pool:
        sleeping = pool.submit(guest.run, ["sh", "-c", "echo running; sleep 1000"])
        guest.sh("while ! pgrep -f '[s]leep 1000'; do sleep 0.02; done")
        guest.process.kill()
        with pytest.raises(GuestError, match="the guest has died"):
            sleeping.result(30)


def test_a_guest_that_switches_itself_off_is_reported(guest: UmlGuest) -> None:
    with pytest.raises(GuestError, match="the guest has died"):
        guest.sh("echo o > /proc/sysrq-trigger; sleep 1000")
    guest.process.wait()
    guest.process.returncode = -signal.SIGKILL  # as if this test had closed it


@pytest.mark.allow_kernel_problems
def test_a_bus_outlives_its_guest(uml_bus: UmlBus, boot_guest: BootGuest) -> None:
    from softcard.cards.printer import Printer

    slot = uml_bus.plug(Printer())
    for _ in range(2):
        guest = boot_guest(uml_bus)
        assert "1ded" in guest.sh(f"cat {slot.sysfs}/vendor").stdout
        guest.close()


def test_an_impossible_kernel_is_explained(boot_guest: BootGuest, tmp_path: Path) -> None:
    from dataclasses import replace

    from softcard.guest.kernel import ensure_kernel

    kernel = ensure_kernel()
    with pytest.raises(GuestError, match="cannot start"):
        boot_guest(kernel=replace(kernel, image=tmp_path / "nothing"))
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho I am no kernel\nexit 7\n")
    silent.chmod(0o755)
    with pytest.raises(GuestError, match=r"died \(status 7\)(.|\n)*I am no kernel"):
        boot_guest(kernel=replace(kernel, image=silent))
