"""The two consoles; rich leaves out colours where there is no terminal."""

from __future__ import annotations

import sys
from functools import cache
from io import TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def out() -> Console:
    """Standard output: what was asked for."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@cache
def err() -> Console:
    """Standard error: what happens meanwhile."""
    from rich.console import Console

    return Console(highlight=False, stderr=True, soft_wrap=True)


def print_at_once() -> None:
    """What a card prints appears when it prints it, also where standard output is no terminal."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
