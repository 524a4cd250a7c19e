"""Measure, print a table, and write JSON: python -m benchmarks [FILE.json]."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import host, qemu, registers, start, storage, vfio_user
from benchmarks.result import Result, save, show
from rich.console import Console

OUTPUT = Path("build/benchmarks.json")


def main() -> None:
    """Run every benchmark."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    results: list[Result] = []
    with Console(stderr=True).status("") as status:
        for name, measure in (
            ("boot, plug and memory", start.measure),
            ("registers, interrupts and DMA", registers.measure),
            ("registers over a vfio-user socket", vfio_user.measure),
            ("the NVMe card", storage.measure),
            ("the NVMe card in QEMU", qemu.measure),
            ("the NVMe card on the machine's own bus", host.measure),
        ):
            status.update(f"measuring {name}")
            results += measure()
    show(results)
    output.parent.mkdir(parents=True, exist_ok=True)
    save(results, output)
    print(f"also in {output}")


main()
