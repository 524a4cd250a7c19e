"""The NVMe card on the bus of the machine that serves it, and QEMU's own nvme device beside it.

The machine is a stock Linux in QEMU, with two processors: one for whoever uses the disk, one for
the card.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fio import Job, run_job, unit_of
from benchmarks.qemu import MEMORY, add_their_disk
from benchmarks.result import Result, save, show, summed_up

from softcard.guest.kernel.cache import cache_folder
from softcard.guest.qemu import QemuBus, QemuGuest
from softcard.guest.qemu.headers import build_stock_module
from softcard.guest.qemu.kernel import StockKernel, need_kernel

ROOT = Path(__file__).parents[1]
GUEST_MEMORY = 2 << 30
SIZE = 256 << 20
PROCESSORS = 2
# In the order in which they are plugged in.
THEIRS, OURS = "/dev/nvme0n1", "/dev/nvme1n1"
ROUNDS = 3
TIMEOUT = 60.0
OUTPUT = ROOT / "build" / "host.json"

JOBS = (
    Job("randread", "4k", 1, "at least 3,000"),
    Job("randread", "4k", 32, "at least 7,300"),
    Job("randwrite", "4k", 1),
    Job("randwrite", "4k", 32, "at least 7,300"),
    Job("read", "128k", 8, "at least 0.63"),
    Job("write", "128k", 8, "at least 0.63"),
    Job("read", "1m", 4, "at least 0.63"),
    Job("write", "1m", 4, "at least 0.63"),
)


def measure(rounds: int = ROUNDS) -> list[Result]:
    """Every job on both disks, in turn, in rounds."""
    kernel = need_kernel()
    module = _module(kernel)
    with (
        QemuBus(kernel=kernel, memory=GUEST_MEMORY, processors=PROCESSORS) as bus,
        tempfile.NamedTemporaryFile(dir=MEMORY) as file,
    ):
        guest = bus.boot()
        guest.load_module(module)
        os.posix_fallocate(file.fileno(), 0, SIZE)
        add_their_disk(guest, Path(file.name))
        guest.wait_for_path(THEIRS)
        server = guest.start(
            [sys.executable, "-m", "benchmarks.host_server", "--size", str(SIZE)],
            env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=str(ROOT),
        )
        try:
            guest.wait_for_path(OURS)
            return _measure(guest, {"softcard": OURS, "QEMU own": THEIRS}, rounds)
        finally:
            server.end_input()
            server.wait(TIMEOUT, _ignore, _complain)


def _measure(guest: QemuGuest, disks: dict[str, str], rounds: int) -> list[Result]:
    samples: dict[tuple[Job, str], list[float]] = {(job, who): [] for job in JOBS for who in disks}
    for disk in disks.values():
        guest.run(["dd", "if=/dev/zero", f"of={disk}", "bs=1M", "oflag=direct"], check=False)
    for _ in range(rounds):
        for job in JOBS:
            for who, disk in disks.items():
                samples[job, who].append(run_job(guest, job, disk))
    return [_result(job, who, values) for (job, who), values in samples.items()]


def _module(kernel: StockKernel) -> Path:
    target = cache_folder("qemu") / "modules" / kernel.release / "benchmarks"
    return build_stock_module(kernel, ROOT / "kernel", target)


def _ignore(_data: bytes) -> None:
    pass


def _complain(data: bytes) -> None:
    sys.stderr.write(data.decode(errors="replace"))


def _result(job: Job, who: str, values: Sequence[float]) -> Result:
    return summed_up(
        "the machine's own bus",
        f"{who}: {job.block} {job.rw}, depth {job.depth}",
        unit_of(job),
        values,
        more_is_better=True,
        target=job.target if who == "softcard" else "",
    )


if __name__ == "__main__":
    found = measure()
    show(found)
    OUTPUT.parent.mkdir(exist_ok=True)
    save(found, OUTPUT)
