"""What the tests with a stock Linux in QEMU share: above all one guest, since it boots slowly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from softcard.guest.qemu import QemuBus, QemuGuest
from softcard.testing.plugin import ECHO, WATCH

FREE_SLOTS = 4
# Reads or writes 32 or 64 bits of BAR 0: SYSFS, then `OFFSET` or `OFFSET=VALUE`, with an L behind
# an offset of 64 bits.
ACCESS = """
import contextlib, mmap, sys
with contextlib.suppress(OSError), open(sys.argv[1] + "/enable", "w") as file:
    file.write("1")  # refused where a driver has done it
with open(sys.argv[1] + "/resource0", "r+b") as file:
    memory = memoryview(mmap.mmap(file.fileno(), 0))
for access in sys.argv[2:]:
    offset, _, value = access.partition("=")
    kind = "Q" if offset.endswith("L") else "I"
    words, at = memory.cast(kind), int(offset.rstrip("L"), 0) // (8 if kind == "Q" else 4)
    if value:
        words[at] = int(value, 0)
    else:
        print(hex(words[at]))
"""

Access = Callable[..., list[int]]


@dataclass
class Shared:
    """The guest of many tests; another one where a test has spoiled it."""

    bus: QemuBus

    def guest(self) -> QemuGuest:
        guest = self.bus.guest
        if guest is not None and (not guest.alive or self.bus.free_slots < FREE_SLOTS):
            guest.close()
        return self.bus.guest or self.bus.boot()


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    with QemuBus(echo=request.config.stash.get(ECHO, None)) as bus:
        yield Shared(bus)


@pytest.fixture
def guest(request: pytest.FixtureRequest, shared: Shared) -> Iterator[QemuGuest]:
    """A guest without cards, which other tests have used before."""
    guest = shared.guest()
    request.node.stash[WATCH].guests.append((guest, guest.log.position()))
    yield guest
    for slot in shared.bus.slots:
        if guest.alive:
            slot.unplug()


@pytest.fixture
def bus(guest: QemuGuest) -> QemuBus:
    """The bus of `guest`."""
    return guest.bus


@pytest.fixture
def access(guest: QemuGuest) -> Access:
    """Accesses to a card's BAR 0 by a program in the guest; the values that were read."""

    def run(sysfs: str, *accesses: str) -> list[int]:
        result = guest.run(["python3", "-c", ACCESS, sysfs, *accesses])
        return [int(line, 0) for line in result.stdout.split()]

    return run


def sha256(guest: QemuGuest, path: str) -> str:
    """The checksum of a file in the guest."""
    return guest.run(["sha256sum", path]).stdout.split()[0]
