"""fio(1) in a guest."""

from __future__ import annotations

import json
from dataclasses import dataclass

from softcard.guest.guest import Guest

SECONDS = 2
# Blocks so large that bytes are what matters.
LARGE = ("128k", "1m")


@dataclass(frozen=True)
class Job:
    """One fio job.

    Attributes:
        rw, block, depth: as fio has them.
        target: what is promised, in words.
    """

    rw: str
    block: str
    depth: int
    target: str = ""


def unit_of(job: Job) -> str:
    """What `run_job` counts: bytes where they are what matters, else commands."""
    return "GB/s" if job.block in LARGE else "IOPS"


def run_job(guest: Guest, job: Job, disk: str) -> float:
    """Run a job once on a disk."""
    output = guest.run(
        [
            "fio", "--name=bench", f"--filename={disk}", "--direct=1", "--ioengine=libaio",
            f"--rw={job.rw}", f"--bs={job.block}", f"--iodepth={job.depth}",
            f"--runtime={SECONDS}", "--time_based", "--output-format=json",
        ]
    ).stdout  # fmt: skip
    side = json.loads(output[output.index("{") :])["jobs"][0]
    direction = side["read" if "read" in job.rw else "write"]
    if job.block in LARGE:
        return float(direction["bw_bytes"]) / 1e9
    return float(direction["iops"])
