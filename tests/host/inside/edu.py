"""The edu card with a driver that tries each of its parts. Argument: the driver."""

import sys

from tests.host.inside.common import load, sh

from softcard.bus.host import HostBus
from softcard.cards.edu import Edu

with HostBus() as bus:
    slot = bus.plug(Edu())
    load(sys.argv[1])
    slot.unplug()
    sh("rmmod softcard_edu")
