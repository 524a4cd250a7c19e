"""A card that tells Linux of more vectors than it told the module of.

Arguments: the driver, and of how many MSI-X vectors the module is told.
"""

import sys
from dataclasses import replace
from pathlib import Path

from tests.host.inside.common import DEBUGFS, load, mount_debugfs, sh
from tests.uml.cards import ProbeCard

from softcard.bus.host import HostBus, server
from softcard.bus.host.description import Description, describe
from softcard.model.link import Downstream

driver, told = sys.argv[1], int(sys.argv[2])
folder = DEBUGFS / "softcard_probe"


def describe_fewer(function: Downstream, number: int) -> Description:
    right = describe(function, number)
    fewer = replace(right, msi=0, msi_vectors=0, msi_mask=0, msix_vectors=told)
    return fewer if told else replace(fewer, msix=0, table=(0, 0), pba=(0, 0))


server.describe = describe_fewer  # type: ignore[attr-defined]
mount_debugfs()
with HostBus() as bus:
    slot = bus.plug(ProbeCard())
    for kind in ("msix", "msi"):
        load(f"{driver} kind={kind}")
        bound = Path(slot.sysfs, "driver").exists()
        print(kind, len((folder / "counts").read_text().split()) if bound else "none")
        sh("rmmod softcard_probe")
    slot.unplug()
