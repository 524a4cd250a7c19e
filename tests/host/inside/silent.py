"""A card that falls silent while its driver is bound to it. Arguments: the driver of edu, and how.

resumed		reads time out, the driver gives up, and the card is unplugged when it answers again
killed		the same, but the card never answers again
probing		reads wait for ever, and the card goes while the driver waits in its probe function
looked		somebody looks at its configuration space, for which interrupts are off; then as resumed
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.host.inside.common import sh, wait_for, wait_until

from softcard.bus.host import HostBus
from softcard.cards.edu import Edu

driver, how = sys.argv[1:]
CARD = Path("/sys/bus/pci/devices/1ff00:01:00.0")
BOUND = Path("/sys/bus/pci/drivers/softcard_edu/1ff00:01:00.0")
TIMEOUT, TIMEOUTS = 0.2, {"probing": 0.0, "looked": 1.0}
# For the 16 words that any user may read. With a second for each it would be 16.
LOOK = 5.0


def serve(said: int, orders: int) -> None:
    """The card's program: says when the card is there, and unplugs it when it is told to."""
    with HostBus(completion_timeout=TIMEOUTS.get(how, TIMEOUT)) as bus:
        slot = bus.plug(Edu())
        os.write(said, b"plugged")
        os.read(orders, 1)
        slot.unplug()
    os._exit(0)


def is_waiting(pid: int) -> bool:
    """Whether it waits in the driver's probe function for an answer."""
    return "softcard_ask" in Path(f"/proc/{pid}/stack").read_text()


hear, said = os.pipe()
orders, order = os.pipe()
server = os.fork()
if not server:
    serve(said, orders)
assert os.read(hear, 7) == b"plugged"
os.kill(server, signal.SIGSTOP)
if how == "looked":
    start = time.monotonic()
    assert len(os.pread(os.open(CARD / "config", os.O_RDONLY), 64, 0)) == 64
    assert time.monotonic() - start < LOOK
insmod = subprocess.Popen(["insmod", driver])
if how == "probing":
    wait_until(lambda: is_waiting(insmod.pid))
    os.kill(server, signal.SIGKILL)
    assert insmod.wait(60) == 0
else:
    assert insmod.wait(60) == 0
    if how == "killed":
        os.kill(server, signal.SIGKILL)
    else:
        os.kill(server, signal.SIGCONT)
        os.write(order, b"!")
# The module is loaded, but its probe function has failed.
assert not BOUND.exists()
_, status = os.waitpid(server, 0)
assert status == (0 if how in ("resumed", "looked") else signal.SIGKILL), status
wait_for(str(CARD), exists=False)
sh("rmmod softcard_edu")
