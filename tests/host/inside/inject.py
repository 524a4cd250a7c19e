"""Interrupts from two processors at once, each of which has to be handled.

Arguments: the driver that counts, the card, how many interrupts, and how many of a storm.
"""

import subprocess
import sys
import time
from pathlib import Path

from tests.host.inside.common import DEBUGFS, load, mount_debugfs, sh, wait_for, wait_until

driver, program, total, storm = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
folder = DEBUGFS / "softcard_count"
WATCHDOG = Path("/proc/sys/kernel/watchdog_thresh")


def counts() -> list[int]:
    return [int(line) for line in (folder / "counts").read_text().split()]


mount_debugfs()
load(driver)
card = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert card.stdin is not None
assert card.stdout is not None
wait_for(str(folder / "work"))
sent = 0


def is_quiet() -> bool:
    """Whether what is still on its way, at the next tick, has come."""
    before = counts()
    time.sleep(0.1)
    return counts() == before


def start(kind: str, each: int) -> None:
    """Each of two threads sends as many."""
    assert card.stdin is not None
    card.stdin.write(f"{kind} {each}\n")
    card.stdin.flush()


def finish(kind: str, each: int) -> None:
    """Wait until all are sent, and handled."""
    global sent
    assert card.stdout is not None
    assert card.stdout.readline() == f"{kind} {each}\n"
    sent += 2 * each
    wait_until(lambda: sum(counts()) >= sent)
    assert sum(counts()) == sent, (counts(), sent)


for kind in ("ioctl", "eventfd", "both"):
    start(kind, total // 2)
    finish(kind, total // 2)
    print(kind, sum(counts()), "handled of", sent)

# Handlers that are slower than the card: all are called, and the processor does other work, too.
before = WATCHDOG.read_text()
WATCHDOG.write_text("2")
(folder / "work").write_text("100")
start("both", storm // 2)
finish("both", storm // 2)
(folder / "work").write_text("0")
WATCHDOG.write_text(before)
print("storm", sum(counts()), "handled of", sent)

# While masked, messages become one. None may be lost altogether, and none be made up.
start("both", total // 2)
(folder / "flip").write_text(str(total // 100))
assert card.stdout.readline() == f"both {total // 2}\n"
(folder / "flip").write_text("1")
start("ioctl", 1)
assert card.stdout.readline() == "ioctl 1\n"
wait_until(is_quiet)
most = sum(counts())
assert sent < most <= sent + total + 2, (sent, most)
print("masked", most - sent, "handled of", total + 2)
sent = most
start("both", 500)
finish("both", 500)

card.stdin.close()
assert card.wait() == 0
sh("rmmod softcard_count")
