"""A disk under load, until this process is killed or, with an argument, pulls it."""

import subprocess
import sys
import time

from tests.host.inside.common import sh, wait_for

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

with HostBus() as bus:
    slot = bus.plug(Nvme(size=Size(64 << 20)))
    sh("modprobe nvme")
    wait_for("/dev/nvme0n1")
    writer = subprocess.Popen([sys.executable, "-c", LOAD], stderr=subprocess.DEVNULL)
    time.sleep(1)  # for requests to be on their way
    print("loaded", flush=True)
    if len(sys.argv) > 1:
        slot.pull()
        assert writer.wait(60), "the writer saw no error"
    else:
        writer.wait()
