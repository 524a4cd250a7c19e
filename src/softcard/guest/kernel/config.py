"""The kernel's configuration: what is wanted, and whether it came about."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

UNSET = "n"
SET_LINE = re.compile(r"(CONFIG_\w+)=(.*)")
UNSET_LINE = re.compile(r"# (CONFIG_\w+) is not set")


def parse(text: str) -> dict[str, str]:
    """The options in a configuration or a fragment of one; one that is not set has the value n."""
    options = {}
    for line in text.splitlines():
        if match := SET_LINE.fullmatch(line.strip()):
            options[match[1]] = match[2]
        elif match := UNSET_LINE.fullmatch(line.strip()):
            options[match[1]] = UNSET
    return options


def merge(fragments: Iterable[Path]) -> dict[str, str]:
    """The options of several fragments; a later one has the last word."""
    wanted: dict[str, str] = {}
    for fragment in fragments:
        wanted |= parse(fragment.read_text())
    return wanted


def text_of(options: dict[str, str]) -> str:
    """A configuration in the kernel's own format."""
    return "".join(
        f"# {name} is not set\n" if value == UNSET else f"{name}={value}\n"
        for name, value in options.items()
    )


def dropped(wanted: dict[str, str], config: dict[str, str]) -> list[str]:
    """Options that Kconfig gave another value than was wanted, as `CONFIG_X=value`.

    It drops silently what depends on something that is missing, or what has been renamed.
    """
    return [f"{name}={value}" for name, value in wanted.items() if config.get(name, UNSET) != value]
