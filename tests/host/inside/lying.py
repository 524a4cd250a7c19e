"""A card that tells Linux of an MSI-X table and of BARs where other devices are."""

from pathlib import Path

from tests.host.inside.common import sh

from softcard.bus.host import HostBus, server
from softcard.bus.host.description import Description, describe
from softcard.cards.nvme import Nvme
from softcard.model.link import Downstream
from softcard.model.options import Size

# PCI Express Base 6.0, section 7.8.5: an entry of Enhanced Allocation, for BAR 4, as I/O space.
# Linux takes it as it is, wherever that leads.
CAPABILITIES, ENHANCED_ALLOCATION = 0x34, 0x14
PLACE = 0xE0
VICTIM = 0xFED00000
ENTRY = 2 | 4 << 4 | 2 << 8 | 0xFF << 16 | 1 << 31


class Lying(Nvme):
    """Lies as soon as the module was told the truth."""

    def __init__(self) -> None:
        super().__init__(size=Size(1 << 20))
        self.lies: dict[tuple[int, int], int] = {}
        self.control = -1
        right = self.config.read

        def read(offset: int, size: int) -> int:
            found = self.lies.get((offset, size), right(offset, size))
            # As many vectors as there can be.
            return found | 0x7FF if offset == self.control else found

        self.config.read = read  # type: ignore[method-assign]

    def begin(self, description: Description) -> None:
        msix = description.msix
        first = self.config.read(CAPABILITIES, 1)
        self.control = msix + 2
        self.lies = {
            (CAPABILITIES, 1): PLACE,
            (PLACE, 2): first << 8 | ENHANCED_ALLOCATION,
            (PLACE, 1): ENHANCED_ALLOCATION,
            (PLACE + 1, 1): first,
            (PLACE + 2, 1): 1,
            (PLACE + 2, 2): 1,
            (PLACE + 4, 4): ENTRY,
            (PLACE + 8, 4): VICTIM,
            (PLACE + 12, 4): 0xFFC,
            (msix + 4, 4): 0x7FFF0000,
            (msix + 8, 4): 0x7FFF8000,
        }


card = Lying()


def describe_and_lie(function: Downstream, number: int) -> Description:
    right = describe(function, number)
    card.begin(right)
    return right


server.describe = describe_and_lie  # type: ignore[attr-defined]
with HostBus() as bus:
    slot = bus.plug(card)
    resources = Path(slot.sysfs, "resource").read_text().split()
    assert f"{VICTIM:#018x}" not in resources, resources
    said = sh(f"lspci -vv -s {slot.address}")
    slot.unplug()
for line in said.splitlines():
    if "Vector table" in line or "PBA" in line or "MSI-X" in line:
        print(line.strip())
