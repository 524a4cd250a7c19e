"""The stock path of the smallest card: plugged in, driven, unplugged. Argument: the driver."""

import sys
from pathlib import Path

from tests.host.inside.common import load, sh

from softcard import Bar, Card, Register
from softcard.bus.host import HostBus


class Printer(Card):
    vendor_id, device_id = 0x1DED, 0x0001

    class bar0(Bar, size=4096):
        message = Register(0x00)

    @bar0.message.on_write
    def show(self, value: int) -> None:
        print(f"the driver wrote {value:#010x}")


with HostBus() as bus:
    slot = bus.plug(Printer())
    load(sys.argv[1])
    assert "Kernel driver in use" in sh(f"lspci -k -s {slot.address}")
    Path(slot.sysfs, "message").write_text("0xcafef00d")
    slot.unplug()
    sh("rmmod softcard_printer")
