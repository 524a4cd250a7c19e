"""softcard run --bus host: the machine is a stock Linux in QEMU, and its own guest."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.host.conftest import LIMIT, Modules

from softcard.guest.channel import Process
from softcard.guest.guest import Result
from softcard.guest.qemu import QemuGuest

SOFTCARD = [sys.executable, "-B", "-m", "softcard"]
PYTEST = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
CARD = """
from softcard import Bar, Card, Register, run

class Printer(Card):
    vendor_id, device_id = 0x1DED, 0x0001

    class bar0(Bar, size=4096):
        message = Register(0x00)

    @bar0.message.on_write
    def show(self, value):
        print(f"the driver wrote {value:#010x}")

run(Printer)
"""
# The card's folder, whatever domain it is in; the machine's own devices are in domain 0.
MESSAGE = "/sys/bus/pci/devices/1????:*/message"
# Linux 6.1's nvme takes a card before it has looked at it.
FIND_DISK = "until lsblk -no NAME | grep nvme0n1; do sleep 0.1; done"
NO_CARD = 'test -z "$(lspci -D | grep -v ^0000:)"'

NETWORK = "tls://127.0.0.1:4711"
PATIENCE = 60.0

Softcard = Callable[..., Result]


class Running:
    """A command in the guest, in the background."""

    def __init__(self, guest: QemuGuest, command: list[str]) -> None:
        self.said = ""
        self.process: Process = guest.start(command)

    def wait_for(self, text: str) -> None:
        """Wait until it has printed `text`; what came before that is forgotten."""

        def add(data: bytes) -> None:
            self.said += data.decode()
            if text in self.said:
                raise FoundError

        if text not in self.said:
            try:
                self.process.wait(PATIENCE, add, add)
            except FoundError:
                pass
            except TimeoutError:
                pytest.fail(f"no {text!r} in {self.said!r}")
            else:
                pytest.fail(f"it has ended, with no {text!r} in {self.said!r}")
        self.said = self.said.partition(text)[2]

    def end(self, number: int) -> int:
        # Not to its children: they are softcard's business.
        self.process.kill(number)
        return self.process.wait(LIMIT)


class FoundError(Exception):
    """What was waited for has come."""


@pytest.fixture
def softcard(guest: QemuGuest) -> Softcard:
    def run(*arguments: str, check: bool = True) -> Result:
        return guest.run([*SOFTCARD, *arguments], check=check, timeout=LIMIT)

    return run


@pytest.fixture
def card(guest: QemuGuest) -> Iterator[str]:
    guest.sh(f"mkdir /tmp/card; cat > /tmp/card/printer.py <<'end'\n{CARD}\nend")
    yield "/tmp/card/printer.py"
    guest.sh("rm -r /tmp/card")


@pytest.fixture(autouse=True)
def nothing_is_left(guest: QemuGuest) -> Iterator[None]:
    yield
    guest.sh(NO_CARD)


def test_a_disk_is_on_the_machines_own_bus(softcard: Softcard) -> None:
    said = softcard("run", "nvme", "--size", "64M", "--bus", "host", "--", "sh", "-c", FIND_DISK)
    assert "nvme0n1" in said.stdout


def test_the_command_runs_as_an_ordinary_process(guest: QemuGuest, softcard: Softcard) -> None:
    done = guest.run(
        [*SOFTCARD, "run", "printer", "--bus", "host", "--", "sh", "-c", "pwd; echo $WORD; exit 7"],
        cwd="/usr", env={"WORD": "passed on"}, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert (done.status, done.stdout) == (7, "/usr\npassed on\n")


def test_a_driver_is_loaded_and_unloaded_with_the_run(
    guest: QemuGuest, card: str, modules: Modules
) -> None:
    module = modules("examples/printer_driver")
    done = guest.run(
        [sys.executable, "-B", card, "--bus", "host", "--module", module, "--", "sh", "-c",
         f"for file in {MESSAGE}; do echo 0xcafef00d > $file; done"],
        timeout=LIMIT,
    )  # fmt: skip
    assert done.stdout == "the driver wrote 0xcafef00d\n"
    assert "softcard_printer" not in guest.run(["lsmod"]).stdout


def test_a_card_is_plugged_in_again_when_its_file_is_saved(guest: QemuGuest, card: str) -> None:
    run = Running(guest, [*SOFTCARD, "run", card, "--bus", "host", "--reload"])
    run.wait_for("until Ctrl-C")
    guest.sh(f"sed -i s/0x0001/0x0002/ {card}")
    run.wait_for("printer.py saved: Printer is plugged in anew")
    assert guest.sh("cat /sys/bus/pci/devices/1????:01:00.0/device").stdout == "0x0002\n"
    assert run.end(signal.SIGINT) == 130


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_unplugs_the_card_and_ends_the_command(
    guest: QemuGuest, number: int, status: int
) -> None:
    command = ["--", "sh", "-c", "echo here; exec sleep 12345"]
    run = Running(guest, [*SOFTCARD, "run", "nvme", "--bus", "host", *command])
    run.wait_for("here")
    assert run.end(number) == status
    assert guest.run(["pgrep", "-f", "sleep 12345"], check=False).stdout == ""


def test_a_shell_has_the_card_and_its_exit_status_is_ours(guest: QemuGuest) -> None:
    command = shlex.join([*SOFTCARD, "run", "printer", "--bus", "host", "--shell"])
    # A terminal.
    run = Running(guest, ["script", "-qec", command, "/dev/null"])
    run.wait_for("exit unplugs it")
    run.wait_for("# ")
    run.process.write(b"ls /sys/bus/pci/devices; echo $((40 + 2)) times\n")
    run.wait_for(":01:00.0")
    run.wait_for("42 times")
    run.process.write(b"exit 5\n")
    assert run.process.wait(LIMIT) == 5


@pytest.mark.parametrize("way", ["vfio-user", "tls"])
def test_a_card_of_another_process_is_pulled_and_plugged_in_again_with_it(
    guest: QemuGuest, softcard: Softcard, way: str
) -> None:
    listen, card = ["/tmp/socket"], ["vfio-user:/tmp/socket"]
    if way == "tls":
        if guest.run(["test", "-e", "/proc/sys/net/ipv4"], check=False).status:
            pytest.skip("this kernel has no network")
        softcard("certificates", "/tmp/keys", "127.0.0.1")
        guest.sh("ip link set lo up")
        listen = [NETWORK, "--tls", "/tmp/keys/server"]
        card = [NETWORK, "--tls", "/tmp/keys/client"]
    serve = [*SOFTCARD, "serve", "nvme", "--size", "64M", "--listen", *listen]
    first = Running(guest, serve)
    first.wait_for("waits")
    run = Running(guest, [*SOFTCARD, "run", *card, "--bus", "host"])
    run.wait_for("until Ctrl-C")
    guest.wait_for_path("/dev/nvme0n1")
    first.end(signal.SIGKILL)
    run.wait_for("is lost: the card was pulled")
    second = Running(guest, serve)
    run.wait_for("the card is plugged in")
    guest.wait_for_path("/dev/nvme0n1")
    assert run.end(signal.SIGTERM) == 143
    second.end(signal.SIGTERM)


@pytest.fixture
def user(guest: QemuGuest) -> None:
    """A user who may run Python, wherever that is installed."""
    python = Path(sys.executable).resolve()
    guest.run(["chmod", "o+x", *map(str, python.parents[:-1])])


def as_user(words: list[str], groups: str = "--clear-groups") -> list[str]:
    return ["setpriv", "--reuid", "1000", "--regid", "1000", *shlex.split(groups), *words]


@pytest.mark.usefixtures("user")
def test_an_unprivileged_user_is_told_what_to_ask_for(guest: QemuGuest) -> None:
    done = guest.run(
        as_user([*SOFTCARD, "run", "printer", "--bus", "host", "--", "true"]),
        check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.status == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("softcard: /dev/softcard cannot be opened: Permission denied")


@pytest.mark.usefixtures("user")
def test_a_member_of_the_group_plugs_a_card_in(guest: QemuGuest) -> None:
    guest.sh("chown root:4321 /dev/softcard; chmod 0660 /dev/softcard")
    try:
        done = guest.run(
            as_user(
                [*SOFTCARD, "run", "nvme", "--bus", "host", "--", "sh", "-c", FIND_DISK],
                "--groups 4321",
            ),
            timeout=LIMIT,
        )
    finally:
        guest.sh("chown root:root /dev/softcard; chmod 0600 /dev/softcard")
    assert "nvme0n1" in done.stdout


@pytest.mark.allow_kernel_problems
def test_the_fixture_gives_the_machines_own_bus(guest: QemuGuest) -> None:
    guest.sh("""mkdir /tmp/test; cat > /tmp/test/test_disk.py <<'end'
from softcard.cards.nvme import Nvme

def test_a_disk(host_bus, host_guest):
    slot = host_bus.plug(Nvme())
    host_guest.wait_for_path("/dev/nvme0n1")
    slot.unplug()

def test_a_warning(host_bus, host_guest):
    host_guest.write_file("/dev/kmsg", "WARNING: made up by a test\\n")
end""")
    said = guest.run([*PYTEST, "test_disk.py"], cwd="/tmp/test", check=False, timeout=LIMIT).stdout
    guest.sh("rm -r /tmp/test")
    assert "1 failed, 1 passed" in said
    assert "the guest's kernel reported" in said


@pytest.mark.usefixtures("user")
def test_the_fixture_skips_who_may_not_use_it(guest: QemuGuest) -> None:
    guest.sh("mkdir /tmp/test; echo 'def test_a(host_bus): pass' > /tmp/test/test_a.py")
    done = guest.run(
        as_user([*PYTEST, "test_a.py"]),
        cwd="/tmp/test", timeout=LIMIT,
    )  # fmt: skip
    guest.sh("rm -r /tmp/test")
    assert "SKIPPED [1]" in done.stdout + done.stderr
    assert "Permission denied" in done.stdout
