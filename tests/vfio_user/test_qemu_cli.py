"""The command line with QEMU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess

import pytest

from softcard.guest.qemu.program import need_qemu

SOFTCARD = [sys.executable, "-m", "softcard"]
QEMU = ["--bus", "vfio-user", "--guest", "qemu"]
TIMEOUT = 240.0
CARD = """
from softcard import Bar, Card, Register

class Printer(Card):
    vendor_id, device_id = 0x1DED, 0x0001

    class bar0(Bar, size=4096):
        message = Register(0x00)

    @bar0.message.on_write
    def show(self, value):
        print("{text}", hex(value))
"""
WRITE = """
import mmap, sys
folder = "/sys/bus/pci/devices/" + sys.argv[1]
open(folder + "/enable", "w").write("1")
with open(folder + "/resource0", "r+b") as file:
    registers = memoryview(mmap.mmap(file.fileno(), 0)).cast("I")
registers[0] = int(sys.argv[2], 0)
registers[0]
"""


def softcard(*arguments: str | Path, text: str = "") -> CompletedProcess[str]:
    return subprocess.run(
        [*SOFTCARD, *map(str, arguments)], input=text, capture_output=True, text=True, check=False,
        timeout=TIMEOUT,
    )  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the guest sees as well."""
    with tempfile.TemporaryDirectory(prefix="softcard-test-", dir="/var/tmp") as name:
        yield Path(name)


def test_a_command_runs_with_input_output_and_status() -> None:
    done = softcard(
        "run", "nvme", "--size", "64M", *QEMU, "--memory", "256M", "--kernel-arg", "a.word=1", "-v",
        "--", "sh", "-c", "lsblk -no SIZE; cat; cat /proc/cmdline; exit 7", text="from outside\n",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:2]] == ["64M", "from"]
    assert " a.word=1 " in done.stdout
    assert "boots in QEMU" in done.stderr
    assert "Linux version" in done.stderr


def test_a_saved_card_is_plugged_in_again(folder: Path) -> None:
    file, log = folder / "card.py", folder / "log"
    file.write_text(CARD.replace("{text}", "before"))
    script = (
        f"python3 -c '{WRITE}' 0000:01:00.0 1; echo ready; read line; "
        f"python3 -c '{WRITE}' 0000:01:00.0 2"
    )
    with log.open("w") as errors, subprocess.Popen(
        [*SOFTCARD, "run", str(file), "--reload", *QEMU, "--", "sh", "-c", script],
        stdin=PIPE, stdout=PIPE, stderr=errors, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdin is not None
        said = [run.stdout.readline() for _ in range(2)]
        file.write_text(CARD.replace("{text}", "after"))
        deadline = time.monotonic() + TIMEOUT
        while "plugged in anew" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        rest, _ = run.communicate("\n", timeout=TIMEOUT)
    assert sorted(said) == ["before 0x1\n", "ready\n"], log.read_text()
    assert rest == "after 0x2\n", log.read_text()


def test_qemu_ends_with_softcard() -> None:
    with subprocess.Popen(
        [*SOFTCARD, "run", "printer", *QEMU, "--", "sh", "-c", "echo running; sleep 1000"],
        stdin=DEVNULL, stdout=PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "running\n"
        (qemu,) = map(int, Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split())
        run.send_signal(signal.SIGKILL)
    ended = os.pidfd_open(qemu) if Path(f"/proc/{qemu}").exists() else None
    if ended is not None:
        import select

        assert select.select([ended], [], [], 10)[0], "QEMU is still there"
        os.close(ended)


def test_alone_the_bus_serves_a_socket_and_says_what_to_type() -> None:
    with subprocess.Popen(
        [*SOFTCARD, "run", "edu", "--bus", "vfio-user"], stdout=PIPE, stderr=PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        said: list[str] = []
        while "</qemu:commandline>" not in "".join(said):
            said.append(run.stdout.readline())
        text = "".join(said)
        device = re.findall(r"-device '(.*)'", text)[0]
        path = Path(json.loads(device)["socket"]["path"])
        assert path.is_socket()
        assert (
            f"cloud-hypervisor --memory size=2G,shared=on \\\n    --user-device socket={path}"
            in (text)
        )
        # The line for QEMU is one that QEMU takes.
        program = need_qemu()
        with subprocess.Popen(
            [*program.command, "-nodefaults", "-display", "none", "-S", "-M",
             "q35,memory-backend=memory", "-m", "64M", "-object",
             "memory-backend-memfd,id=memory,size=64M,share=on", "-device", device],
            stdin=DEVNULL, env={**os.environ, **program.environment},
        ) as qemu:  # fmt: skip
            assert "waits" in run.stderr.readline()
            assert run.stderr.readline() == "Edu is plugged in\n"
            qemu.kill()
        assert run.stderr.readline() == "Edu is unplugged\n"
        run.send_signal(signal.SIGTERM)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--guest", "qemu"], "--guest qemu goes with --bus vfio-user, not uml"),
        (["--kernel", "/boot/x"], "--kernel goes with --bus vfio-user --guest qemu"),
        (["--bus", "vfio-user", "--shell"], "only serves the card: add --guest qemu"),
        ([*QEMU, "--kernel", "/etc/passwd"], "/etc/passwd is no Linux kernel"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(words: list[str], complaint: str) -> None:
    done = softcard("run", "printer", *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_status_tells_what_is_used() -> None:
    done = softcard("qemu", "status")
    assert done.returncode == 0
    assert re.search(r"^QEMU +\d+\.", done.stdout, re.M)
    assert re.search(r"^processor +(KVM|TCG)$", done.stdout, re.M)


def test_missing_things_and_their_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "softcard qemu get" in softcard("qemu", "status").stderr
    (tmp_path / "softcard" / "qemu").mkdir(parents=True)
    (tmp_path / "softcard" / "qemu" / "file").write_bytes(bytes(2_000_000))
    assert softcard("qemu", "clean").stdout.startswith("2 MB freed in ")
    assert softcard("qemu", "clean").stdout.startswith("0 MB freed in ")
