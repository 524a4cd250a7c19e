"""The NVMe card under the stock driver, by fio in the guest."""

from __future__ import annotations

from benchmarks.fio import Job, run_job, unit_of
from benchmarks.result import Result, summed_up

from softcard.cards.nvme import Nvme
from softcard.guest.uml import UmlGuest
from softcard.model.options import Size

DISK = "/dev/nvme0n1"
ROUNDS = 5


JOBS = (
    Job("randread", "4k", 1, "at least 10,000"),
    Job("randread", "4k", 16, "at least 15,000"),
    Job("randread", "4k", 64),
    Job("randwrite", "4k", 1),
    Job("randwrite", "4k", 16),
    Job("randwrite", "4k", 64),
    Job("read", "128k", 8, "at least 0.6"),
    Job("write", "128k", 8),
)


def measure() -> list[Result]:
    """Every job, in rounds, so that a busy moment of the machine hits all of them alike."""
    samples: dict[Job, list[float]] = {job: [] for job in JOBS}
    with UmlGuest() as guest:
        guest.bus.plug(Nvme(size=Size("1G")))
        guest.wait_for_path(DISK)
        guest.run(["dd", "if=/dev/zero", f"of={DISK}", "bs=1M", "oflag=direct"], check=False)
        for _ in range(ROUNDS):
            for job in JOBS:
                samples[job].append(run_job(guest, job, DISK))
    return [
        summed_up(
            "NVMe", f"{job.block} {job.rw}, depth {job.depth}",
            unit_of(job), values, more_is_better=True, target=job.target,
        )
        for job, values in samples.items()
    ]  # fmt: skip
