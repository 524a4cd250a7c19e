"""BARs of every kind, and what is answered without the card's code. Argument: what is tried."""

import subprocess
import sys
import threading

from tests.host.inside.common import sh

from softcard import Bar, Card, Function, Memory, Register, Shadow
from softcard.bus.host import HostBus, HostSlot


class Second(Function):
    vendor_id, device_id = 0x1DED, 0x0F22

    class bar0(Bar, size=4096):
        number = Register(0x00, reset=2)


class Board(Card):
    vendor_id, device_id = 0x1DED, 0x0F21
    more_functions = (Second,)

    class bar0(Bar, size=4096):
        number = Register(0x00, reset=1)
        stuck = Register(0x08)

    class bar1(Bar, size=16):
        small = Register(0x00, reset=3)

    class bar2(Bar, size=1 << 20, bits=64, prefetchable=True):
        memory = Memory(0, 0x1000)
        status = Shadow(0x1000, 0x1000)

    class bar4(Bar, size=1 << 32, bits=64, prefetchable=True):
        far = Register((1 << 32) - 8, reset=5)

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.written: list[tuple[int, int, int]] = []

    @bar0.stuck.on_write
    def hang(self, value: int) -> None:
        self.entered.set()
        self.gate.wait(60)

    @bar2.status.on_write
    def command(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


DRIVER = """
import mmap, os, sys
for word in sys.argv[2:]:
    place, _, value = word.partition("=")
    bar, offset = place.split("+")
    fd = os.open(f"{sys.argv[1]}/resource{bar}", os.O_RDWR | os.O_SYNC)
    at = int(offset, 0)
    length = min(4096, os.fstat(fd).st_size)
    view = memoryview(mmap.mmap(fd, length, offset=at & -4096)).cast("I")
    if value:
        view[at % 4096 // 4] = int(value, 0)
    else:
        print(hex(view[at % 4096 // 4]))
"""


def drive(sysfs: str, *accesses: str) -> list[str]:
    """Read a word, or write with `=`, in another process."""
    return subprocess.check_output(
        [sys.executable, "-c", DRIVER, sysfs, *accesses], text=True, timeout=60
    ).split()


def kinds(card: Board, slot: HostSlot) -> None:
    print(sh(f"lspci -v -s {slot.address} | grep -o 'Memory.*'"))
    print(drive(slot.sysfs, "0+0", "1+0", "2+0x1004", f"4+{(1 << 32) - 8}"))
    other = slot.sysfs[:-1] + "1"
    print(drive(other, "0+0"))


def shadows(card: Board, slot: HostSlot) -> None:
    card.bar2.status.view[4:8] = b"\1\2\3\4"
    drive(slot.sysfs, "0+8=1")
    assert card.entered.wait(30)
    # The card's thread does not run: all of this is answered by the kernel.
    print(drive(slot.sysfs, "2+0x1004", "2+8=0x77", "2+8", "2+0x1010=0x99", "2+0x1010"))
    assert card.written == []
    card.gate.set()
    drive(slot.sysfs, "0+0")
    print(card.written)
    print(bytes(card.bar2.memory.view[8:12]))


with HostBus() as bus:
    slots = [(board, bus.plug(board)) for board in (Board(), Board())]
    for board, slot in slots:
        sh(f"for f in 0 1; do setpci -s {slot.address[:-1]}$f COMMAND=2; done")
        {each.__name__: each for each in (kinds, shadows)}[sys.argv[1]](board, slot)
    for _, slot in slots:
        slot.unplug()
