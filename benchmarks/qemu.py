"""The NVMe card in QEMU with a stock Linux, and QEMU's own nvme device beside it in one run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fio import Job, run_job, unit_of
from benchmarks.result import Result, summed_up

from softcard.cards.nvme import Nvme
from softcard.guest.qemu import QemuBus
from softcard.guest.qemu.guest import QemuGuest
from softcard.model.options import Size

OURS, THEIRS = "/dev/nvme0n1", "/dev/nvme1n1"
SIZE = 1 << 30
ROUNDS = 5
# A place for files in memory.
MEMORY = Path("/dev/shm")

JOBS = (
    Job("randread", "4k", 1, "at least QEMU's own"),
    Job("randread", "4k", 16, "at least QEMU's own"),
    Job("randwrite", "4k", 16),
    Job("read", "128k", 8, "within 1.3 times QEMU's own"),
    Job("write", "128k", 8),
)


def measure() -> list[Result]:
    """Every job on both disks, in turn, in rounds."""
    samples: dict[tuple[Job, str], list[float]] = {
        (job, disk): [] for job in JOBS for disk in (OURS, THEIRS)
    }
    with QemuBus() as bus, tempfile.NamedTemporaryFile(dir=MEMORY) as file:
        bus.plug(Nvme(size=Size(SIZE)))
        guest = bus.boot()
        guest.wait_for_path(OURS)
        os.posix_fallocate(file.fileno(), 0, SIZE)
        assert bus.free_slots, "QEMU's own disk needs a slot"
        add_their_disk(guest, Path(file.name))
        guest.wait_for_path(THEIRS)
        for disk in (OURS, THEIRS):
            guest.run(["dd", "if=/dev/zero", f"of={disk}", "bs=1M", "oflag=direct"], check=False)
        for _ in range(ROUNDS):
            for job in JOBS:
                for disk in (OURS, THEIRS):
                    samples[job, disk].append(run_job(guest, job, disk))
        accelerator = guest.accelerator.name
    return [_result(job, disk, values, accelerator) for (job, disk), values in samples.items()]


def add_their_disk(guest: QemuGuest, file: Path) -> None:
    """Plug QEMU's own nvme device into the last slot, with a file for its blocks."""
    guest.monitor.execute(
        "blockdev-add", **{"driver": "file", "node-name": "theirs", "filename": str(file)}
    )
    guest.monitor.execute(
        "device_add", driver="nvme", drive="theirs", serial="theirs", bus="slot7", addr="0.0"
    )


def _result(job: Job, disk: str, values: Sequence[float], accelerator: str) -> Result:
    ours = disk == OURS
    return summed_up(
        f"QEMU ({accelerator})",
        f"{'softcard' if ours else 'QEMU own'}: {job.block} {job.rw}, depth {job.depth}",
        unit_of(job),
        values,
        more_is_better=True,
        target=job.target if ours else "",
    )
