"""A program that waits for its own card, which nobody serves then, and is killed; and a machine
that goes to sleep while a card is plugged in. Argument: killed, or asleep."""

import os
import signal
import sys
import threading
from pathlib import Path

from tests.host.inside.common import sh, wait_for, wait_until

from softcard.bus.host import HostBus
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

CARD = Path("/sys/bus/pci/devices/1ff00:01:00.0")
LINK = CARD / "current_link_speed"


def hang(held: threading.Event) -> None:
    """The card's code does not return."""
    held.set()
    threading.Event().wait()


def wait_for_itself(said: int) -> None:
    """Never returns, and never answers."""
    card = Nvme(size=Size(1 << 20))
    with HostBus(completion_timeout=0) as bus:
        bus.plug(card)
        assert card.current_loop is not None
        held = threading.Event()
        card.current_loop.call_soon_threadsafe(hang, held)
        held.wait()
        os.write(said, b"!")
        LINK.read_text()


def is_waiting(pid: int) -> bool:
    """Whether a thread of it waits for the card."""
    stacks = Path(f"/proc/{pid}/task").glob("*/stack")
    return any("softcard_ask" in stack.read_text() for stack in stacks)


if sys.argv[1] == "killed":
    hear, said = os.pipe()
    pid = os.fork()
    if not pid:
        wait_for_itself(said)
    os.read(hear, 1)
    wait_until(lambda: is_waiting(pid))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
else:
    with HostBus() as bus:
        slot = bus.plug(Nvme(size=Size(1 << 20)))
        # As far as programs, which is behind what is tested; devices could not be woken here.
        sh("echo freezer > /sys/power/pm_test; echo freeze > /sys/power/state")
        sh("echo none > /sys/power/pm_test")
wait_for(str(CARD), exists=False)
