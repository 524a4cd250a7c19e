"""What was found on this machine, as a table: what is well, what is missing, what mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from softcard.cli.output import out


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        about: what was looked at.
        good: whether it is as it should be; None where it is only worth knowing.
        found: what is the case.
        mend: the command or change that helps.
        needed: nothing runs without it.
    """

    about: str
    good: bool | None
    found: str
    mend: str = ""
    needed: bool = True


def show(findings: Iterable[Finding]) -> None:
    """Print a line for each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        mark, style = _mark(finding)
        text = Text(finding.found)
        if finding.mend:
            text.append(f"\n{finding.mend}", style="bold")
        table.add_row(Text(mark, style=style), finding.about, text)
    out().print(table, soft_wrap=False)


def _mark(finding: Finding) -> tuple[str, str]:
    if finding.good is None:
        return "info", "dim"
    if finding.good:
        return "ok", "green"
    return ("missing", "red") if finding.needed else ("missing", "yellow")
