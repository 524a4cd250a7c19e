"""The command line with the real kernel: run, serve, reload, demo."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess

import pytest

from softcard.guest.kernel import Kernel

SOFTCARD = [sys.executable, "-m", "softcard"]
TIMEOUT = 60.0
CARD = """
from softcard import Bar, Card, Register, run

class Printer(Card):
    vendor_id, device_id = 0x1DED, 0x0001

    class bar0(Bar, size=4096):
        message = Register(0x00)

    @bar0.message.on_write
    def show(self, value):
        print(f"the driver wrote {value:#010x}")

    def on_reset(self, kind):
        pass

run(Printer)
"""


@pytest.fixture
def card(tmp_path: Path, uml_kernel: Kernel) -> Path:
    file = tmp_path / "card.py"
    file.write_text(CARD)
    return file


def softcard(*arguments: str | Path, stdin: int = DEVNULL) -> CompletedProcess[str]:
    return subprocess.run(
        [*SOFTCARD, *map(str, arguments)],
        stdin=stdin, capture_output=True, text=True, check=False, timeout=TIMEOUT,
    )  # fmt: skip


def _heed_interrupts() -> None:
    # Whoever runs the tests in the background may have had this signal ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """The command line in the background; `wait_for` reads what it prints."""

    def __init__(self, *arguments: str | Path, temporary: str | None = None) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*SOFTCARD, *map(str, arguments)],
            stdin=DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=_heed_interrupts,
            env=os.environ | ({"TMPDIR": temporary} if temporary else {}),
        )  # fmt: skip
        self._more = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line.rstrip())
                self._more.notify_all()

    def wait_for(self, text: str, seen: int = 0) -> int:
        """Wait for a line with `text` behind the first `seen` ones; how many are seen then."""

        def found() -> int:
            lines = enumerate(self.lines[seen:], seen + 1)
            return next((number for number, line in lines if text in line), 0)

        with self._more:
            number = self._more.wait_for(found, TIMEOUT)
            assert number, f"no {text!r} behind line {seen} of {self.lines[: seen + 20]}"
            return number

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)


@pytest.fixture
def running() -> Iterator[list[Running]]:
    """What is put into this list is ended after the test."""
    started: list[Running] = []
    yield started
    for each in started:
        each.process.kill()
        each.process.wait()


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_exit_status_is_that_of_the_command(card: Path) -> None:
    assert softcard("run", card, "--", "true").returncode == 0
    assert softcard("run", card, "--", "sh", "-c", "exit 7").returncode == 7
    assert softcard("run", card, "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9


def test_the_commands_output_goes_where_the_command_sent_it(card: Path) -> None:
    done = softcard("run", card, "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_the_commands_input_is_ours(card: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("some words\n" * 20_000)
    with words.open() as file:
        assert softcard("run", card, "--", "cat", stdin=file.fileno()).stdout == words.read_text()


def test_a_command_that_does_not_exist_is_127(card: Path) -> None:
    done = softcard("run", card, "--", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program: No such file or directory" in done.stderr


def test_the_card_is_there_before_the_command_starts(uml_kernel: Kernel) -> None:
    done = softcard("run", "nvme", "--size", "64M", "--", "cat", "/sys/block/nvme0n1/size")
    assert done.stdout == f"{(64 << 20) // 512}\n"
    assert softcard("run", "nvme", "--", "mkfs.ext4", "-q", "/dev/nvme0n1").returncode == 0


def test_the_file_can_be_run_by_python(card: Path) -> None:
    done = subprocess.run(
        [sys.executable, card.name, "--", "cat", "/sys/bus/pci/devices/0000:00:00.0/device"],
        cwd=card.parent, stdin=DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "0x0001\n"


def test_guest_options_reach_the_guest(card: Path) -> None:
    done = softcard(
        "run", card, "--memory", "96M", "--kernel-arg", "softcard_test=1", "--log",
        "--", "sh", "-c", "grep MemTotal /proc/meminfo; cat /proc/cmdline",
    )  # fmt: skip
    assert "softcard_test=1" in done.stdout
    assert 40 << 10 < int(done.stdout.split()[1]) < 96 << 10
    assert "Linux version" in done.stderr


def test_a_handlers_exception_is_shown_and_the_card_goes_on(card: Path) -> None:
    card.write_text(CARD.replace("        pass", "        raise OSError('no paper')"))
    done = softcard("run", card, "--", "cat", "/sys/bus/pci/devices/0000:00:00.0/device")
    assert done.stdout == "0x0001\n"
    assert "OSError: no paper" in done.stderr
    assert f'"{card}"' in done.stderr
    assert "endpoint.py" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
@pytest.mark.parametrize("command", [[], ["--", "sleep", "1000"]])
def test_a_signal_ends_everything(
    card: Path, running: list[Running], number: signal.Signals, status: int, command: list[str]
) -> None:
    # Short, because sockets are made in it.
    with tempfile.TemporaryDirectory() as temporary:
        run = Running("run", card, "--log", *command, temporary=temporary)
        running.append(run)
        run.wait_for("as init process")
        time.sleep(0.3)
        children = children_of(run.process.pid)
        assert children
        assert run.end(number) == status
        assert not any(Path(f"/proc/{child}").exists() for child in children)
        assert not list(Path(temporary).iterdir())


def test_a_shell_needs_a_terminal(card: Path) -> None:
    done = softcard("run", card, "--shell")
    assert done.returncode == 2
    assert "a shell needs a terminal" in done.stderr


def test_a_shell_has_a_terminal_and_its_status_is_ours(card: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PS1"] = "> "
        os.execv(sys.executable, [*SOFTCARD, "run", str(card), "--shell"])
    said = b""
    deadline = time.monotonic() + TIMEOUT
    typed = False
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        said += data
        if not typed and b"# " in said:
            os.write(terminal, b"tty && cat /sys/bus/pci/devices/*/device; exit 5\n")
            typed = True
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    os.close(terminal)
    assert b"/dev/pts/" in said
    assert b"0x0001" in said


def test_reload_plugs_the_saved_card_in_and_the_guest_stays_up(
    card: Path, running: list[Running]
) -> None:
    watch = "while :; do echo is $(cat /sys/bus/pci/devices/*/device) $$; sleep 0.05; done"
    run = Running("run", card, "--reload", "--", "sh", "-c", watch)
    running.append(run)
    seen = run.wait_for("is 0x0001")

    card.write_text(CARD.replace("0x0001", "0x0002"))
    seen = run.wait_for("is 0x0002", seen)

    card.write_text(CARD + "\n)\n")
    seen = run.wait_for("SyntaxError", seen)
    seen = run.wait_for("the card stays as it was", seen)
    seen = run.wait_for("is 0x0002", seen)

    card.write_text(CARD.replace("4096", "3000"))
    seen = run.wait_for("a BAR of 3000 bytes is impossible", seen)
    seen = run.wait_for("is 0x0002", seen)

    card.write_text(CARD.replace("0x0001", "0x0003"))
    run.wait_for("is 0x0003", seen)
    shells = {line.split()[2] for line in run.lines if line.startswith("is 0x")}
    assert len(shells) == 1


def test_reload_hands_a_file_over_to_the_new_card(
    tmp_path: Path, uml_kernel: Kernel, running: list[Running]
) -> None:
    file = tmp_path / "disk.py"
    text = "from softcard.cards.nvme import Nvme\n\nclass Disk(Nvme):\n    device_id = 0x1111\n"
    file.write_text(text)
    run = Running("run", file, "--reload", "--size", "16M", "--file", tmp_path / "image")
    running.append(run)
    run.wait_for("The card is at")
    file.write_text(text.replace("1111", "2222"))
    run.wait_for("Disk is plugged in anew")
    assert not any("softcard:" in line for line in run.lines)


def test_a_card_of_another_process_is_plugged_in(
    card: Path, tmp_path: Path, running: list[Running]
) -> None:
    socket = tmp_path / "socket"
    server = Running("serve", card, "--socket", socket)
    running.append(server)
    server.wait_for("waits at")
    for _ in range(2):
        done = softcard(
            "run", f"uml:{socket}", "--", "cat", "/sys/bus/pci/devices/0000:00:00.0/device"
        )
        assert (done.stdout, done.returncode) == ("0x0001\n", 0)
    server.wait_for("is unplugged")
    assert server.end(signal.SIGINT) == 130
    assert not socket.exists()


def test_a_socket_that_nobody_serves_is_said(tmp_path: Path, uml_kernel: Kernel) -> None:
    done = softcard("run", f"uml:{tmp_path}/none", "--", "true")
    assert done.returncode == 1
    assert f"no card is served at {tmp_path}/none" in done.stderr


@pytest.mark.parametrize("name", ["nvme", "edu", "printer"])
def test_every_demonstration_works(name: str, uml_kernel: Kernel) -> None:
    done = softcard("demo", name)
    assert done.returncode == 0, done.stderr
    assert "All of this took" in done.stdout
    proof = {
        "nvme": "the file is the same after the disk was mounted again",
        "edu": "factorial of 10: 3628800",
        "printer": "the driver wrote 0xdeadbeef",
    }
    assert proof[name] in done.stdout


def test_doctor_finds_that_cards_can_be_run(uml_kernel: Kernel) -> None:
    done = softcard("doctor")
    assert done.returncode == 0, done.stdout
    assert uml_kernel.release in done.stdout
    assert "Cards can be run here" in done.stdout


def test_a_module_is_loaded_from_a_folder_that_the_guest_does_not_see(
    tmp_path: Path, uml_kernel: Kernel
) -> None:
    source = Path(__file__).parents[2] / "examples" / "printer_driver"
    folder = tmp_path / "driver"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    built = softcard("kernel", "modules", folder)
    assert built.returncode == 0, built.stderr
    module = built.stdout.strip()
    message = "/sys/bus/pci/devices/0000:00:00.0/message"
    done = softcard(
        "run", "printer", "--module", module, "--", "sh", "-c", f"echo 0x12345678 > {message}"
    )
    assert done.stdout == "the driver wrote 0x12345678\n"
    assert done.returncode == 0
