"""Interrupts of a kind, and blocks in memory. Arguments: the driver, and the kind."""

import sys
from functools import partial

from tests.host.inside.common import DEBUGFS, mount_debugfs, sh, wait_for, wait_until
from tests.uml.cards import ProbeCard

from softcard.bus.host import HostBus

driver, kind = sys.argv[1:]
folder = DEBUGFS / "softcard_probe"


def counts() -> list[int]:
    return [int(line) for line in (folder / "counts").read_text().split()]


def rung(total: int) -> bool:
    return sum(counts()) >= total


mount_debugfs()
with HostBus() as bus:
    slot = bus.plug(ProbeCard())
    sh(f"insmod {driver} kind={kind}")
    wait_for(str(folder))
    print((folder / "kind").read_text().strip())
    for number in range(1, 11):
        # Two causes that the driver sees at once are one interrupt of a line.
        count = 1 if kind == "intx" else 40
        (folder / "ring").write_text(str(count))
        wait_until(partial(rung, number * count))
    print(counts())
    print((folder / "blocks").read_text().strip())
    slot.unplug()
    sh("rmmod softcard_probe")
