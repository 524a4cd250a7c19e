"""A disk under load, until this process is killed or, with an argument, pulls it."""

import subprocess
import sys
from pathlib import Path

from tests.host.inside.common import sh, wait_for, wait_until

from softcard.bus.host import HostBus
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

LOAD = """
import os, sys
block = os.urandom(1 << 16)
fd = os.open("/dev/nvme0n1", os.O_WRONLY)
while True:
    for at in range(0, 64 << 20, len(block)):
        os.pwrite(fd, block, at)
    os.fsync(fd)
"""

# Documentation/block/stat.rst
WRITES = 4


def has_written() -> bool:
    return int(Path("/sys/block/nvme0n1/stat").read_text().split()[WRITES]) > 0


with HostBus() as bus:
    slot = bus.plug(Nvme(size=Size(64 << 20)))
    sh("modprobe nvme")
    wait_for("/dev/nvme0n1")
    writer = subprocess.Popen([sys.executable, "-c", LOAD], stderr=subprocess.DEVNULL)
    wait_until(has_written)
    print("loaded", flush=True)
    if len(sys.argv) > 1:
        slot.pull()
        assert writer.wait(60), "the writer saw no error"
    else:
        writer.wait()
