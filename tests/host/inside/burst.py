"""Writes that must not be lost, and how long reads take. Arguments: the driver, how many writes."""

import statistics
import subprocess
import sys

from tests.host.inside.common import DEBUGFS, load, mount_debugfs, sh, wait_for

from softcard import Bar, Card, Register
from softcard.bus.host import HostBus


class Burst(Card):
    vendor_id, device_id = 0x1DED, 0x0B57
    seen = seen_of_other = 0
    wrong = 0

    class bar0(Bar, size=4096):
        number = Register(0x00)
        answer = Register(0x04)
        other = Register(0x08)

    @bar0.number.on_write
    def count(self, value: int) -> None:
        self.seen += 1
        self.wrong += value != self.seen

    @bar0.other.on_write
    def count_other(self, value: int) -> None:
        self.seen_of_other += 1
        self.wrong += value != self.seen_of_other

    @bar0.answer.on_read
    def reply(self) -> int:
        return 0x5A5A5A5A


driver, count = sys.argv[1], int(sys.argv[2])
folder = DEBUGFS / "softcard_burst"
mount_debugfs()
with HostBus() as bus:
    card = Burst()
    slot = bus.plug(card)
    load(driver)
    wait_for(str(folder))
    for name in ("burst", "atomic"):
        card.seen = card.wrong = 0
        # Another process: the card is to be served meanwhile.
        subprocess.run(["/bin/sh", "-c", f"echo {count} > {folder}/{name}"], check=True)
        sh(f"head -1 {folder}/asleep")  # a read comes behind all writes
        print(name, card.seen, card.wrong)
    card.seen = card.wrong = 0
    # One that sleeps where it has to wait, and one that cannot, each on a processor.
    writers = [
        subprocess.Popen(
            ["taskset", "-c", str(cpu), "/bin/sh", "-c", f"echo {count} > {folder}/{name}"]
        )
        for cpu, name in enumerate(("atomic", "other"))
    ]
    assert not any(writer.wait() for writer in writers)
    sh(f"head -1 {folder}/asleep")
    print("both", card.seen, card.seen_of_other, card.wrong)
    for name in ("latency", "asleep"):
        samples = [int(line) for line in sh(f"cat {folder}/{name}").split()]
        print(name, statistics.median(samples), "ns")
    slot.unplug()
    sh("rmmod softcard_burst")
