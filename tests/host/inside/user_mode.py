"""Programs that drive a card by themselves. Arguments: what is tried, the program, a uio driver."""

import subprocess
import sys
from pathlib import Path

from tests.host.inside.common import load, sh, wait_for

from softcard import Bar, Card, Memory, Register
from softcard.bus.host import HostBus, HostSlot


class Board(Card):
    vendor_id, device_id = 0x1DED, 0x0F20

    class bar0(Bar, size=0x4000):
        scratch = Register(0x00, width=64)
        answer = Register(0x08, width=64)
        number = Register(0x10)
        memory = Memory(0x2000, 0x2000)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    @bar0.answer.on_read
    def reply(self) -> int:
        return 0x5A5A5A5A5A5A5A5A

    @bar0.number.on_write
    def note(self, value: int) -> None:
        self.seen.append(value)


def accesses(card: Board, file: str) -> None:
    for part in ("instructions", "burst", "memory", "child", "refused"):
        subprocess.run([program, file, part], check=True)
    assert card.seen == list(range(1, 5001))
    assert bytes(card.bar0.memory.view[:13]) == b"the driver'sx"


def resource(card: Board, slot: HostSlot) -> None:
    sh(f"setpci -s {slot.address} COMMAND=2")
    accesses(card, f"{slot.sysfs}/resource0")
    slot.unplug()


def uio(card: Board, slot: HostSlot) -> None:
    load(sys.argv[3])
    wait_for("/dev/uio0")
    accesses(card, "/dev/uio0")
    slot.unplug()
    sh("rmmod softcard_uio")


def gone(card: Board, slot: HostSlot) -> None:
    sh(f"setpci -s {slot.address} COMMAND=2")
    files = [f"{slot.sysfs}/resource0"]
    load(sys.argv[3])
    wait_for("/dev/uio0")
    files.append("/dev/uio0")
    drivers = [
        subprocess.Popen(
            [program, file, "gone"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for file in files
    ]
    for driver in drivers:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "mapped\n"
    slot.pull()
    for driver in drivers:
        said, _ = driver.communicate("\n")
        assert driver.returncode == 0, said
    sh("rmmod softcard_uio")


def vfio(card: Board, slot: HostSlot) -> None:
    sh("modprobe vfio-pci")
    Path(slot.sysfs, "driver_override").write_text("vfio-pci")
    sh(f"echo {slot.address} > /sys/bus/pci/drivers_probe || true")
    assert not Path(slot.sysfs, "driver").exists()
    slot.unplug()


program = sys.argv[2]
with HostBus() as bus:
    board = Board()
    {each.__name__: each for each in (resource, uio, gone, vfio)}[sys.argv[1]](
        board, bus.plug(board)
    )
