"""What a guest and this process have in use, to see that it does not grow."""

from __future__ import annotations

import gc
import re
from pathlib import Path

from softcard.guest.uml import UmlGuest

# What a hundred cycles may take without being a leak. Memory, in KiB: the kernel's log is kept, and
# the heap does not give back every page; four pages leaked in each cycle would be seen, and so
# would one object.
ALLOWED = {"memory here": 3000, "memory in the guest": 800, "objects here": 50}


def open_files(pid: int | str = "self") -> int:
    """Descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int | str = "self") -> int:
    """Threads of a process."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def resources(guest: UmlGuest) -> dict[str, int]:
    """Descriptors and threads by number, memory in KiB."""
    guest.sh("sync; echo 3 > /proc/sys/vm/drop_caches")
    available = guest.sh("grep MemAvailable /proc/meminfo").stdout.split()[1]
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return {
        "descriptors here": open_files(),
        "descriptors of the guest": open_files(guest.process.pid),
        "threads here": threads(),
        "threads of the guest": threads(guest.process.pid),
        "objects here": len(gc.get_objects()),
        "memory here": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]),
        "memory in the guest": -int(available),
    }


def assert_no_growth(before: dict[str, int], after: dict[str, int]) -> None:
    """Fail where something has grown."""
    grown = {name: after[name] - before[name] for name in before}
    excess = {name: by for name, by in grown.items() if by > ALLOWED.get(name, 0)}
    assert not excess, grown
