"""A disk that comes and goes under load, in every way that there is; arguments: cycles and seed.

Each cycle plugs a disk in with a server of its own, has it written to, and ends it:

pulled		by its program, under load
killed		the server, at a random moment, perhaps before Linux has seen all of the card
unplugged	orderly, under load
stopped		the server is stopped, goes on, and is killed while it is stopped again
unbound		the driver is unbound while the card is pulled
unloaded	the driver is unloaded while the card is pulled
"""

import mmap
import multiprocessing
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

from tests.host.inside.common import TIMEOUT, sh, wait_until

from softcard.bus.host import HostBus
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

DEVICES = Path("/sys/bus/pci/devices")
DRIVER = Path("/sys/bus/pci/drivers/nvme")
PORTS, DISKS = "1ff*:00:00.0", "nvme*n1"
# Linux lets go after these of a card that goes while nvme first looks at it: 60 s and 30 s.
PARAMETERS = Path("/sys/module/nvme_core/parameters")
TIMEOUTS = ("admin_timeout", "io_timeout")
SECONDS = "15"
# Before that, nvme ends no writes of a disk that goes while it lets go of it.
ENDS_WRITES = (6, 12)
LINUX = tuple(map(int, platform.release().split(".")[:2]))
# Documentation/block/stat.rst
WRITES = 4

# Each of its own, and without the seconds that Python takes to start.
fork = multiprocessing.get_context("fork")


def serve(end: Connection, other: Connection) -> None:
    """A server, in its process: does to its slot what it is told."""
    other.close()
    with HostBus() as bus:
        slot = bus.plug(Nvme(size=Size(16 << 20)))
        end.send(slot.sysfs)
        while True:
            try:
                what = end.recv()
            except EOFError:
                return
            getattr(slot, what)()
            end.send("done")


def write(disk: Path, *, direct: bool) -> None:
    """Writes until it cannot any more, through Linux's cache and with flushes unless `direct`."""
    block = mmap.mmap(-1, 1 << 16)
    block.write(os.urandom(len(block)))
    fd = os.open(disk, os.O_WRONLY | (os.O_DIRECT if direct else 0))
    try:
        while True:
            for at in range(0, 16 << 20, len(block)):
                os.pwrite(fd, block, at)
            if not direct:
                os.fsync(fd)
    except OSError:
        pass


class Cycle:
    """A server, and who writes to its disk."""

    def __init__(self) -> None:
        self.end, its = fork.Pipe()
        self.server = fork.Process(target=serve, args=(its, self.end))
        self.server.start()
        its.close()
        self.writer: ForkProcess | None = None

    def hear(self) -> str:
        """Wait for what the server says."""
        assert self.end.poll(TIMEOUT), "the server says nothing"
        said = self.end.recv()
        assert isinstance(said, str)
        return said

    def have(self, what: str) -> None:
        """Have the server call a method of its slot."""
        self.end.send(what)
        assert self.hear() == "done"

    def load(self, *, direct: bool = False) -> None:
        """Write, and return when something has been written."""
        self.device = Path(self.hear())
        wait_until(lambda: any(self.disks()))
        [disk] = self.disks()
        self.writer = fork.Process(
            target=write, args=(Path("/dev") / disk.name,), kwargs={"direct": direct}
        )
        self.writer.start()
        wait_until(lambda: int((disk / "stat").read_text().split()[WRITES]) > 0)

    def load_for_driver(self) -> None:
        """Write only what nvme ends when the disk goes while it lets go of it; see docs/host.md."""
        self.load(direct=True)
        if LINUX < ENDS_WRITES:
            assert self.writer is not None
            self.writer.kill()
            self.writer.join(TIMEOUT)

    def disks(self) -> list[Path]:
        """What Linux knows of the disk, once it does."""
        return list(self.device.glob(f"nvme/*/{DISKS}"))

    def processes(self) -> list[ForkProcess]:
        """The server, and who writes."""
        return [self.server] if self.writer is None else [self.server, self.writer]

    def close(self) -> None:
        """Nothing of the disk is left."""
        self.end.close()
        for process in self.processes():
            process.join(TIMEOUT)
            assert process.exitcode is not None, f"{process.name} does not end"
        wait_until(lambda: not any(DEVICES.glob(PORTS)))
        wait_until(lambda: not any(Path("/dev").glob(DISKS)))

    def kill(self) -> None:
        """After a failure, which is not to wait for it."""
        for process in self.processes():
            process.kill()


def pulled(cycle: Cycle) -> None:
    cycle.load()
    cycle.have("pull")


def unplugged(cycle: Cycle) -> None:
    cycle.load()
    cycle.have("unplug")


def killed(cycle: Cycle) -> None:
    if random.random() < 0.5:
        cycle.load()
    else:
        wait_until(lambda: any(DEVICES.glob(PORTS)))
    time.sleep(random.random() * 0.2)
    cycle.server.kill()


def stopped(cycle: Cycle) -> None:
    cycle.load()
    assert cycle.server.pid is not None
    for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP, signal.SIGKILL):
        os.kill(cycle.server.pid, number)
        time.sleep(random.random() * 0.2)


def unbound(cycle: Cycle) -> None:
    cycle.load_for_driver()
    unbinding = subprocess.Popen(
        ["/bin/sh", "-c", f"echo {cycle.device.name} > {DRIVER}/unbind"], stderr=subprocess.DEVNULL
    )
    time.sleep(random.random() * 0.1)
    cycle.have("pull")
    unbinding.wait(60)


def unloaded(cycle: Cycle) -> None:
    cycle.load_for_driver()
    unloading = subprocess.Popen(["rmmod", "nvme"], stderr=subprocess.DEVNULL)
    time.sleep(random.random() * 0.1)
    cycle.have("pull")
    unloading.wait(60)
    sh("modprobe nvme")


WAYS = (pulled, killed, killed, unplugged, stopped, unbound, unloaded)

count, seed = int(sys.argv[1]), int(sys.argv[2])
random.seed(seed)
sh("modprobe nvme")
usual = {name: (PARAMETERS / name).read_text() for name in TIMEOUTS}
for name in TIMEOUTS:
    (PARAMETERS / name).write_text(SECONDS)
done: dict[str, int] = {}
lasted: list[float] = []
for number in range(count):
    began = time.monotonic()
    way = WAYS[number % len(WAYS)]
    cycle = Cycle()
    try:
        way(cycle)
        cycle.close()
    except BaseException:
        print(f"cycle {number}: {way.__name__}", flush=True)
        cycle.kill()
        raise
    done[way.__name__] = done.get(way.__name__, 0) + 1
    lasted.append(time.monotonic() - began)
for name, seconds in usual.items():
    (PARAMETERS / name).write_text(seconds)
print(count, "cycles:", ", ".join(f"{number} {name}" for name, number in done.items()))
print(
    f"half of them took {statistics.median(lasted):.1f} s or less, the longest {max(lasted):.0f} s"
)
