"""A card's program sleeps again after what woke it was served, and is woken by what comes next."""

import select
import threading
from pathlib import Path

from tests.host.inside.common import TIMEOUT, wait_until

from softcard.bus.host import HostBus
from softcard.cards.edu import Edu


def read(config: Path) -> None:
    """A configuration read."""
    with config.open("rb", buffering=0) as file:
        file.read(4)


def read_when_asleep(config: Path, thread: int) -> None:
    """A configuration read once the thread sleeps in epoll."""
    wait_until(lambda: "epoll_wait" in Path(f"/proc/self/task/{thread}/stack").read_text())
    read(config)


with HostBus() as bus:
    slot = bus.plug(Edu())
    server = slot._server
    ring, config = server._ring, Path(slot.sysfs, "config")
    woken: list[bool] = []
    done = threading.Event()

    def sleep_again() -> None:
        """On the server's thread, in the place of its loop."""
        with select.epoll() as bell:
            bell.register(ring.fileno(), select.EPOLLIN)
            while ring.arm():
                ring.poll()
            first = threading.Thread(target=read, args=(config,))
            first.start()
            while first.is_alive():
                ring.poll()
            # The bell has rung for what is served already.
            second = threading.Thread(
                target=read_when_asleep, args=(config, threading.get_native_id())
            )
            second.start()
            woken.append(bool(bell.poll(TIMEOUT)))
            while second.is_alive():
                ring.poll()
        done.set()

    server._loop.call_soon_threadsafe(sleep_again)
    assert done.wait(3 * TIMEOUT)
    assert woken == [True]
    slot.unplug()
print("woken")
