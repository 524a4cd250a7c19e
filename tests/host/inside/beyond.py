"""A card whose last extended capability reaches over the end of the configuration space."""

from pathlib import Path

from tests.host.inside.common import sh

from softcard.bus.host import HostBus
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

FIRST, LAST = 0x100, 0xFFC
# Section 7.8.4; Linux reads and clears its status, which is beyond the end here.
ADVANCED_ERROR_REPORTING, VERSION = 0x0001, 1 << 16


class Beyond(Nvme):
    """Says what the model refuses to describe."""

    def __init__(self) -> None:
        super().__init__(size=Size(1 << 20))
        self.beyond = 0
        right = self.config.read

        def read(offset: int, size: int) -> int:
            if offset == FIRST and size == 4:
                return LAST << 20 | VERSION
            if offset == LAST and size == 4:
                return VERSION | ADVANCED_ERROR_REPORTING
            self.beyond += offset + size > LAST + 4
            return right(offset, size)

        self.config.read = read  # type: ignore[method-assign]


card = Beyond()
with HostBus() as bus:
    slot = bus.plug(card)
    assert "[ffc v1] Advanced Error Reporting" in sh(f"lspci -vv -s {slot.address}")
    assert Path(slot.sysfs, "aer_dev_correctable").exists()
    slot.unplug()
print(card.beyond, "accesses beyond the end")
