"""The machine itself as the guest."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softcard.errors import GuestError
from softcard.guest.guest import CommandError
from softcard.guest.machine import MachineGuest

KMSG = Path("/dev/kmsg")


@pytest.fixture
def guest() -> Iterator[MachineGuest]:
    with MachineGuest() as guest:
        yield guest


def has_ended(process: int) -> bool:
    ready = select.select([process], [], [], 10)[0]
    os.close(process)
    return bool(ready)


def test_commands_run_in_our_folder_with_our_environment_and_as_this_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORD", "ours")
    with MachineGuest() as guest:
        said = guest.sh("pwd; echo $WORD; id -u").stdout
        assert said == f"{tmp_path}\nours\n{os.geteuid()}\n"
        assert guest.run(["sh", "-c", "pwd; echo $WORD"], cwd="/", env={"WORD": "x"}).stdout == (
            "/\nx\n"
        )


def test_a_command_that_fails_is_an_error(guest: MachineGuest) -> None:
    with pytest.raises(CommandError, match="exited with status 3: so"):
        guest.sh("echo so >&2; exit 3")
    assert guest.run(["cat"], input=b"words").stdout == "words"


def test_files_are_waited_for_and_written(guest: MachineGuest, tmp_path: Path) -> None:
    file = tmp_path / "file"
    guest.start(["touch", str(file)])
    guest.wait_for_path(str(file))
    guest.write_file(str(file), "text")
    assert file.read_text() == "text"
    with pytest.raises(GuestError, match="gone is still missing"):
        guest.wait_for_path(str(tmp_path / "gone"), timeout=0.1)


def test_commands_end_with_it_and_the_machine_goes_on(tmp_path: Path) -> None:
    with MachineGuest() as guest:
        pid = tmp_path / "pid"
        process = guest.start(["sh", "-c", f"trap '' TERM HUP; echo $$ > {pid}; sleep 1000"])
        guest.wait_for_path(str(pid))
        guest.run(["sh", "-c", f"until test -s {pid}; do :; done"])
        end = os.pidfd_open(int(pid.read_text()))
    with pytest.raises(GuestError, match="has ended"):
        process.wait(10)
    assert has_ended(end)


def test_commands_end_when_softcard_is_killed() -> None:
    script = """
from softcard.guest.machine import MachineGuest
guest = MachineGuest()
guest.start(["sh", "-c", "echo $$; exec sleep 1000"]).wait(None, lambda data: (
    print(data.decode(), guest.process.pid, flush=True)))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        sleeper = int(killed.stdout.readline())
        agent = int(killed.stdout.readline())
        ends = [os.pidfd_open(pid) for pid in (sleeper, agent)]
        killed.kill()
    assert all(map(has_ended, ends))


@pytest.mark.skipif(not os.access(KMSG, os.W_OK), reason="this user has no part in the kernel log")
def test_the_log_has_what_the_kernel_says_from_now_on() -> None:
    KMSG.write_text("softcard test: before\n")
    with MachineGuest() as guest:
        KMSG.write_text("softcard test: meanwhile\n")
        guest.settle_log(10)
        lines = [line for line in guest.log.lines if "softcard test" in line]
    assert [line.partition("] ")[2] for line in lines] == ["softcard test: meanwhile"]
