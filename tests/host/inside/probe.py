"""Interrupts of a kind, and blocks in memory. Arguments: the driver, and the kind."""

import sys

from tests.host.inside.common import DEBUGFS, mount_debugfs, sh, wait_for
from tests.uml.cards import VECTORS, ProbeCard

from softcard.bus.host import HostBus

driver, kind = sys.argv[1:]
folder = DEBUGFS / "softcard_probe"
mount_debugfs()
with HostBus() as bus:
    slot = bus.plug(ProbeCard())
    sh(f"insmod {driver} kind={kind}")
    wait_for(str(folder))
    print((folder / "kind").read_text().strip())
    vectors = VECTORS if kind == "msix" else 1
    for _ in range(10):
        (folder / "ring").write_text("40")
    print((folder / "counts").read_text().split())
    print((folder / "blocks").read_text().strip())
    slot.unplug()
    sh("rmmod softcard_probe")
