"""A measurement and its median; tables and JSON of many."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        group, name: where it belongs, and what it is.
        unit: of the three values.
        median, best, worst: of the samples; best and worst are the 10th and 90th percentile where
            there are ten or more.
        samples: how many there were.
        target: what is promised, in words; empty where nothing is.
    """

    group: str
    name: str
    unit: str
    median: float
    best: float
    worst: float
    samples: int
    target: str = ""


def summed_up(
    group: str, name: str, unit: str, samples: Sequence[float], *, more_is_better: bool = False,
    target: str = "",
) -> Result:  # fmt: skip
    """The result that `samples` make."""
    if len(samples) >= 10:
        cuts = statistics.quantiles(samples, n=10)
        low, high = cuts[0], cuts[-1]
    else:
        low, high = min(samples), max(samples)
    best, worst = (high, low) if more_is_better else (low, high)
    return Result(group, name, unit, statistics.median(samples), best, worst, len(samples), target)


def show(results: Sequence[Result]) -> None:
    """Print a table."""
    table = Table(title=f"softcard on {machine()}", title_justify="left")
    for heading in ("", "measured"):
        table.add_column(heading)
    for heading in ("median", "best", "worst"):
        table.add_column(heading, justify="right")
    for heading in ("unit", "promised"):
        table.add_column(heading)
    group = ""
    for result in results:
        if result.group != group:
            table.add_section()
        table.add_row(
            result.group if result.group != group else "", result.name,
            *(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
              for value in (result.median, result.best, result.worst)),
            result.unit, result.target,
        )  # fmt: skip
        group = result.group
    Console().print(table)


def save(results: Sequence[Result], path: Path) -> None:
    """Write the results and the machine as JSON."""
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "results": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    """Processor, cores, kernel, Python and load, for whoever compares."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
