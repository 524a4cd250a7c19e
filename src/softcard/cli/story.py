"""A demonstration: commands in a guest, each shown with its output, a check mark and its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.text import Text

from softcard.cli.output import out
from softcard.errors import GuestError
from softcard.guest.guest import Guest


class Story:
    """Tells what happens while it happens.

    Attributes:
        guest: the guest that `run` runs commands in.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._mark = "✓" if out().encoding.lower().startswith("utf") else "ok"
        self.guest: Guest | None = None

    def say(self, text: str) -> None:
        """A sentence between the steps."""
        out().print(f"\n{text}", markup=False)

    @contextmanager
    def step(self, title: str, *, command: bool = False) -> Iterator[Callable[[str], None]]:
        """Time something; gives a function that takes what there is to show of it."""
        shown: list[str] = []
        begun = time.monotonic()
        yield shown.append
        line = Text(f"{self._mark} ", style="green")
        line.append(f"$ {title}" if command else title, style="bold")
        line.append(f"  {time.monotonic() - begun:.2f} s", style="dim not bold")
        out().print(line)
        for text in shown:
            for each in text.rstrip().splitlines():
                out().print(f"  {each}", markup=False)

    def run(self, script: str) -> str:
        """Run a line of shell in the guest, and show it; its output."""
        assert self.guest is not None
        with self.step(script, command=True) as show:
            result = self.guest.sh(script)
            show(result.stdout)
        return result.stdout

    def check(self, good: bool, claim: str) -> None:
        """Say that something holds.

        Raises:
            GuestError: it does not.
        """
        if not good:
            raise GuestError(f"the demonstration failed: it is not true that {claim}")
        out().print(Text(f"{self._mark} {claim}", style="green"))

    def end(self) -> None:
        """Say how long it took."""
        out().print(f"\nAll of this took {time.monotonic() - self._start:.1f} s.", style="green")
