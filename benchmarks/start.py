"""How long it takes until a card can be used, and how much memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.result import Result, summed_up

from softcard.bus.uml import UmlBus
from softcard.cards.nvme import Nvme
from softcard.guest.uml import UmlGuest
from softcard.model.options import Size

DISK = "/dev/nvme0n1"
ROUNDS = 7
MIB = 1 << 20


def measure() -> list[Result]:
    """Boot, plug, unplug, pull, and resident memory."""
    boots: list[float] = []
    plugs: list[float] = []
    unplugs: list[float] = []
    pulls: list[float] = []
    guests: list[float] = []
    hosts: list[float] = []
    for _ in range(ROUNDS):
        with UmlBus() as bus:
            bus.plug(Nvme(size=Size("256M")))
            start = time.perf_counter()
            with UmlGuest(bus) as guest:
                guest.wait_for_path(DISK)
                boots.append(time.perf_counter() - start)
                guests.append(_resident(guest.process.pid))
                hosts.append(_resident("self"))
                unplugs.append(_timed(bus.slots[0].unplug))
                start = time.perf_counter()
                slot = bus.plug(Nvme(size=Size("256M")))
                guest.wait_for_path(DISK)
                plugs.append(time.perf_counter() - start)
                pulls.append(_timed(slot.pull))
    milliseconds = {
        f"boot to {DISK}": (boots, "at most 500"),
        f"plug to {DISK}": (plugs, ""),
        "orderly unplug": (unplugs, ""),
        "pull, until the guest has noticed": (pulls, ""),
    }
    results = [
        summed_up("time", name, "ms", [s * 1000 for s in samples], target=target)
        for name, (samples, target) in milliseconds.items()
    ]
    return [
        *results,
        summed_up("memory", "guest, after boot", "MiB", guests),
        summed_up("memory", "softcard with the card", "MiB", hosts),
    ]


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _resident(pid: int | str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / MIB
    return 0.0
