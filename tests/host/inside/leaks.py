"""What the module would leave behind if it leaked: looked at before and after a test.

python -m tests.host.inside.leaks before|after
"""

import json
import re
import sys
import time
from pathlib import Path

from tests.host.inside.common import DEBUGFS, TIMEOUT, mount_debugfs, sh

KEPT = Path("/tmp/leaks.json")
REFERENCES = Path("/sys/module/softcard/refcnt")
# Caches of the kernel grow, too; what thousands of cards leak is more.
SLACK_KB = 8192
NEW_LEAK = "unreferenced object"
# The kernel's log tells how many there are, whoever's they are.
UNHEARD, HEARD = "dmesg -n 5", "dmesg -n 8"
# pci_scan_device() forgets the name of a device whose header is of no type that it knows.
LEAK_OF_LINUX = re.compile(r"dev_set_name\+.*\n\s*pci_setup_device\+")


def kmemleak() -> Path | None:
    """Where a kernel that finds leaks by itself tells of them."""
    mount_debugfs()
    file = DEBUGFS / "kmemleak"
    return file if file.exists() else None


def meminfo(name: str) -> int:
    """Kilobytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def counts() -> dict[str, int]:
    """Things that must be as many afterwards as before."""
    return {
        "PCI devices": len(list(Path("/sys/bus/pci/devices").iterdir())),
        "interrupts": len(list(Path("/sys/kernel/irq").iterdir())),
        "windows": Path("/proc/iomem").read_text().count("softcard"),
        "vmalloc areas": Path("/proc/vmallocinfo").read_text().count("softcard"),
    }


def memory() -> dict[str, int]:
    """Kilobytes that may grow a little."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    return {name: meminfo(name) for name in ("SUnreclaim", "VmallocUsed", "Percpu")}


def stuck() -> str:
    """Where threads wait in the module or in the PCI core."""
    found = []
    for task in Path("/proc").glob("[0-9]*"):
        try:
            stack = (task / "stack").read_text()
            if "softcard" in stack or "pci" in stack:
                found.append((task / "comm").read_text() + stack)
        except OSError:
            continue  # it has ended
    return "\n".join(found)


def settle() -> None:
    """Wait until the last card is freed."""
    end = time.monotonic() + TIMEOUT
    while int(REFERENCES.read_text()):
        assert time.monotonic() < end, f"{REFERENCES.read_text()}{stuck()}"
        time.sleep(0.1)


def before() -> None:
    """Keep how it is."""
    settle()
    if (file := kmemleak()) is not None:
        file.write_text("scan=off")
        file.write_text("clear")
    KEPT.write_text(json.dumps([counts(), memory()]))


def after() -> None:
    """Compare."""
    settle()
    counted, measured = json.loads(KEPT.read_text())
    assert counts() == counted, (counted, counts())
    now = memory()
    for name, kilobytes in measured.items():
        assert now[name] < kilobytes + SLACK_KB, (name, kilobytes, now[name])
    print("grown by", {name: now[name] - measured[name] for name in now}, "kB")
    if (file := kmemleak()) is not None:
        # What was just freed may still be seen in a register; the second scan is sure.
        sh(UNHEARD)
        file.write_text("scan")
        file.write_text("scan")
        sh(HEARD)
        leaks = file.read_text().split(NEW_LEAK)[1:]
        assert not (ours := [leak for leak in leaks if not LEAK_OF_LINUX.search(leak)]), ours


{"before": before, "after": after}[sys.argv[1]]()
