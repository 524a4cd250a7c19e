"""The two consoles; rich leaves out colours where there is no terminal."""

from __future__ import annotations

from functools import cache
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
