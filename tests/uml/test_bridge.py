"""A card that a vfio-user server in another process serves, in the embedded Linux."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.uml.cards import ProbeCard
from tests.uml.conftest import Modules, wait_for_disk
from tests.uml.test_drivers import FILES, wait_counts

from softcard import Card
from softcard.bridge.vfio_user import VfioUserCard
from softcard.bus.uml import UmlBus
from softcard.bus.vfio_user import VfioUserServer
from softcard.cards.edu import Edu
from softcard.guest.kernel import Kernel
from softcard.guest.uml import UmlGuest
from softcard.testing.plugin import BootGuest

SERVE = """
import sys, threading
from pathlib import Path
from softcard.bus.vfio_user import VfioUserServer
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

server = VfioUserServer(Nvme(size=Size("64M")), Path(sys.argv[1]))
print("serving", flush=True)
threading.Event().wait()
"""
DISK = "/dev/nvme0n1"

Serve = Callable[[], "Served"]
Bridge = Callable[[Card], VfioUserCard]


class Served:
    """A process with a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, path], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "serving\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve() -> Iterator[Serve]:
    served: list[Served] = []
    with tempfile.TemporaryDirectory(prefix="softcard-test-") as folder:

        def start() -> Served:
            served.append(Served(Path(folder, str(len(served)))))
            return served[-1]

        yield start
        for one in served:
            one.kill()


def test_linux_uses_a_disk_of_another_process(
    guest: UmlGuest, uml_bus: UmlBus, serve: Serve
) -> None:
    slot = uml_bus.plug(VfioUserCard(serve().path))
    wait_for_disk(guest)
    guest.sh(f"mkfs.ext4 -q {DISK}; mkdir /tmp/m; mount {DISK} /tmp/m")
    guest.sh("head -c 20M /dev/urandom > /tmp/m/file; sha256sum /tmp/m/file > /tmp/sum")
    guest.sh(f"umount /tmp/m; mount {DISK} /tmp/m; sha256sum -c /tmp/sum; umount /tmp/m")
    guest.sh(f"e2fsck -fn {DISK}")
    assert "MSI-X: Enable+" in guest.sh("lspci -vv").stdout
    slot.unplug()
    guest.wait_for_path(DISK, exists=False)


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    """Serves a card of this process, and gives the bridge card that leads to it."""
    servers: list[VfioUserServer] = []

    def make(card: Card) -> VfioUserCard:
        servers.append(VfioUserServer(card, tmp_path / str(len(servers))))
        return VfioUserCard(servers[-1].paths[0])

    yield make
    for server in servers:
        server.stop()


@pytest.mark.parametrize("kind", ["msix", "msi", "intx"])
def test_the_driver_gets_every_interrupt_of_the_kind_that_it_chose(
    guest: UmlGuest, uml_bus: UmlBus, modules: Modules, bridge: Bridge, kind: str
) -> None:
    guest.load_module(modules("softcard_probe"), f"kind={kind}")
    uml_bus.plug(bridge(ProbeCard()))
    guest.wait_for_path(f"{FILES}/ring")
    for number in range(1, 51):
        guest.write_file(f"{FILES}/ring", "1")
        if kind == "intx":
            # Two causes that the driver sees at once are one interrupt of a line.
            wait_counts(guest, number)
    assert sum(wait_counts(guest, 50)) == 50
    if kind != "intx":
        guest.write_file(f"{FILES}/ring", "500")
        assert sum(wait_counts(guest, 550)) == 550


@pytest.mark.parametrize("kind", ["MSI", "INTx"])
def test_edu_passes_its_drivers_tests(
    boot_guest: BootGuest, uml_bus: UmlBus, modules: Modules, bridge: Bridge, kind: str
) -> None:
    class EduWithIntxOnly(Edu):
        msi = None  # type: ignore[assignment]

    # The engine reaches 28 bits only.
    guest = boot_guest(uml_bus, memory=256 << 20)
    guest.load_module(modules("edu_driver"))
    uml_bus.plug(bridge(Edu() if kind == "MSI" else EduWithIntxOnly()))
    guest.log.wait_for(rf"identification 0x010000ed, {kind}")
    guest.log.wait_for("liveness: wrote 0x12345678, read 0xedcba987")
    guest.log.wait_for("factorial of 10: 3628800 .*0x1")
    guest.log.wait_for("DMA: these words went to the card and came back .*0x100")


def test_blocks_of_every_size_and_alignment_reach_memory_and_come_back(
    guest: UmlGuest, uml_bus: UmlBus, modules: Modules, bridge: Bridge
) -> None:
    card = ProbeCard()
    guest.load_module(modules("softcard_probe"), "kind=msix")
    uml_bus.plug(bridge(card))
    guest.wait_for_path(f"{FILES}/ring")
    assert guest.sh(f"cat {FILES}/blocks").stdout == "fine\n"
    assert any(card.bar2.memory.view[:4096])


def test_a_server_that_is_killed_under_load_is_a_card_that_was_pulled(
    guest: UmlGuest, uml_bus: UmlBus, serve: Serve
) -> None:
    for _ in range(3):
        served = serve()
        slot = uml_bus.plug(VfioUserCard(served.path))
        wait_for_disk(guest)
        load = [
            guest.start(["sh", "-c", f"while dd {operands} bs=64k 2>/dev/null; do :; done; exit 7"])
            for operands in (
                f"if={DISK} of=/dev/null iflag=direct",
                f"if=/dev/zero of={DISK} oflag=direct count=1000",
            )
        ]
        guest.sh("until awk '{ exit !($1 > 100 && $5 > 100) }' /sys/block/nvme0n1/stat; do :; done")
        served.kill()
        for process in load:
            # At once: long before the driver's own time-out of 30 seconds.
            assert process.wait(10) == 7
        slot.wait_until_gone()
        slot.pull()
        guest.wait_for_path(DISK, exists=False)
        assert guest.run(["echo", "alive"]).stdout == "alive\n"


def test_it_is_pulled_from_here_while_its_server_lives_and_plugged_in_again(
    guest: UmlGuest, uml_bus: UmlBus, serve: Serve
) -> None:
    card = VfioUserCard(serve().path)
    for _ in range(3):
        slot = uml_bus.plug(card)
        wait_for_disk(guest)
        guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=4 oflag=direct 2>/dev/null")
        slot.pull()
        guest.wait_for_path(DISK, exists=False)


def test_the_command_line_takes_a_socket_of_any_server(serve: Serve, uml_kernel: Kernel) -> None:
    command = [sys.executable, "-m", "softcard", "run", f"vfio-user:{serve().path}", "--bus", "uml"]
    done = subprocess.run(
        [*command, "--", "lspci", "-n"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "0108: 1ded:4e56" in done.stdout


def test_the_command_line_says_where_nobody_listens(tmp_path: Path, uml_kernel: Kernel) -> None:
    command = [sys.executable, "-m", "softcard", "run", f"vfio-user:{tmp_path}/none"]
    done = subprocess.run(
        [*command, "--", "true"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("softcard: no card can be reached at ")
    assert done.stderr.count("\n") == 1
