"""A card that another process serves, and that process's sudden end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.uml.conftest import wait_for_disk

from softcard import GuestError
from softcard.bus.uml import UmlBus
from softcard.guest.uml import UmlGuest

SERVE = """
import sys, threading
from pathlib import Path
from softcard.bus.uml import CardServer
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

file = Path(sys.argv[2]) if len(sys.argv) > 2 else None
server = CardServer(Nvme(size=Size("64M"), file=file), Path(sys.argv[1]))
print("serving", flush=True)
threading.Event().wait()
"""
DISK = "/dev/nvme0n1"
ENDED_BY_US = -9

Serve = Callable[..., "Served"]


class Served:
    """A process with a card."""

    def __init__(self, path: Path, *arguments: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, path, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "serving\n"

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait() == ENDED_BY_US


@pytest.fixture
def serve() -> Iterator[Serve]:
    processes: list[Served] = []
    with tempfile.TemporaryDirectory(prefix="softcard-test-") as folder:

        def start(name: str, *arguments: Path) -> Served:
            processes.append(Served(Path(folder, name), *arguments))
            return processes[-1]

        yield start
        for served in processes:
            served.process.kill()
            served.process.wait()


def test_it_is_plugged_in_like_any_other(guest: UmlGuest, uml_bus: UmlBus, serve: Serve) -> None:
    slot = uml_bus.plug_socket(serve("card").path)
    wait_for_disk(guest)
    slot.unplug()
    guest.wait_for_path(DISK, exists=False)


def test_its_death_is_a_surprise_removal_and_another_takes_its_place(
    guest: UmlGuest, uml_bus: UmlBus, serve: Serve
) -> None:
    for round_ in range(5):
        served = serve(f"card{round_}")
        slot = uml_bus.plug_socket(served.path)
        wait_for_disk(guest)
        served.kill()
        slot.wait_until_gone()
        slot.pull()
        guest.wait_for_path(DISK, exists=False)


def test_its_death_under_load_gives_errors_at_once_and_the_guest_lives(
    guest: UmlGuest, uml_bus: UmlBus, serve: Serve
) -> None:
    for round_ in range(3):
        served = serve(f"card{round_}")
        slot = uml_bus.plug_socket(served.path)
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


def test_what_was_flushed_before_its_death_is_in_its_file(
    guest: UmlGuest, uml_bus: UmlBus, serve: Serve, tmp_path: Path
) -> None:
    file = tmp_path / "disk"
    served = serve("first", file)
    slot = uml_bus.plug_socket(served.path)
    wait_for_disk(guest)
    guest.sh(f"mkfs.ext4 -q {DISK}; mkdir /tmp/m; mount {DISK} /tmp/m")
    guest.sh("seq 1 100000 > /tmp/m/flushed; sync -f /tmp/m; sha256sum < /tmp/m/flushed > /tmp/sum")
    # Unflushed work goes on while the process dies.
    writing = guest.start(["sh", "-c", "while seq 1 100000 > /tmp/m/more; do :; done"])
    guest.sh("until [ -s /tmp/m/more ]; do :; done")
    served.kill()
    slot.wait_until_gone()
    slot.pull()
    writing.wait(30)
    guest.sh("umount -l /tmp/m", check=False)
    guest.wait_for_path(DISK, exists=False)

    uml_bus.plug_socket(serve("second", file).path)
    wait_for_disk(guest)
    guest.sh(f"e2fsck -fy {DISK} || [ $? -le 1 ]; mount {DISK} /tmp/m")
    assert guest.sh("sha256sum < /tmp/m/flushed | diff - /tmp/sum").stdout == ""


def test_a_card_whose_process_lives_cannot_be_pulled_from_here(
    guest: UmlGuest, uml_bus: UmlBus, serve: Serve
) -> None:
    slot = uml_bus.plug_socket(serve("card").path)
    wait_for_disk(guest)
    with pytest.raises(GuestError, match="virtio-uml"):
        slot.pull(timeout=0.3)
    slot.unplug()
