"""Register accesses, interrupts and DMA, timed by a loop in the guest's kernel."""

from __future__ import annotations

from pathlib import Path

from benchmarks.card import DMA_SIZE, BenchCard
from benchmarks.result import Result, summed_up

from softcard.guest.kernel import build_module, ensure_kernel
from softcard.guest.uml import UmlGuest

MODULE = Path(__file__).parent / "module"
FILES = "/sys/kernel/debug/softcard_bench"
SAMPLES, ROUNDS = 2000, 20
TIMES = {
    "mmio_read": ("register read, no hook", "at most 20 µs"),
    "mmio_read_hooked": ("register read, answered by a method", "at most 20 µs"),
    "mmio_read_after_idle": ("register read after an idle while", ""),
    "mmio_write_sustained": ("posted write, sustained", ""),
    "mmio_write_burst": ("posted write, in a burst", ""),
    "config_read": ("configuration read, a dword", ""),
    "interrupt_latency": ("register write to interrupt handler", ""),
}
TRANSFERS = {"dma_to_card": "DMA of 1 MiB, card reads", "dma_to_host": "DMA of 1 MiB, card writes"}


def measure() -> list[Result]:
    """Each of the module's measurements, in rounds: a busy moment of the machine lasts longer than
    many of them, and hits all alike."""
    (module,) = build_module(ensure_kernel(), MODULE)
    with UmlGuest() as guest:
        guest.bus.plug(BenchCard())
        guest.load_module(module, f"samples={SAMPLES // ROUNDS}")
        samples: dict[str, list[int]] = {name: [] for name in (*TIMES, *TRANSFERS)}
        for _ in range(ROUNDS):
            for name, taken in samples.items():
                output = guest.run(["cat", f"{FILES}/{name}"]).stdout
                taken += [int(line) for line in output.split()]
    results = [
        summed_up("registers", title, "µs", [ns / 1000 for ns in samples[name]], target=target)
        for name, (title, target) in TIMES.items()
    ]
    results += [
        summed_up(
            "DMA", title, "GB/s", [DMA_SIZE / ns for ns in samples[name]], more_is_better=True
        )
        for name, title in TRANSFERS.items()
    ]
    return results
