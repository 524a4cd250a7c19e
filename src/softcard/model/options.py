"""Values of a card's constructor options that Python has no type for.

The command line makes options of a card's keyword-only arguments and converts what the user wrote
with the type of each: `int`, `bool`, `str`, `Path`, and the types here, which are made from text.
"""

from __future__ import annotations

import re
from typing import Self

from softcard.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"(\d+)(?:\.(\d+))? ?([KMGTP]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


class Size(int):
    """A number of bytes: an integer, or text such as `4096`, `512M`, `1G` or `1.5 TiB`.

    The units are multiples of 1,024, with or without `B` or `iB` behind them.

    Raises:
        UsageError: the text is no number of bytes.
    """

    def __new__(cls, value: int | str) -> Self:
        """Parse text, or take a number as it is."""
        return super().__new__(cls, _parse(value) if isinstance(value, str) else value)

    def __str__(self) -> str:
        for unit, factor in reversed(_UNITS.items()):
            if unit and self and self % factor == 0:
                return f"{int(self) // factor} {unit}iB"
        return f"{int(self)} bytes"


def _parse(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"size '{text}' is not a number of bytes: write it like 4096, 512M, 1G or 2T"
        )
    whole, fraction, unit = match.groups(default="")
    size: int
    size, rest = divmod(int(whole + fraction) * _UNITS[unit.upper()], 10 ** len(fraction))
    if rest:
        raise UsageError(f"size '{text}' is not a whole number of bytes: choose a smaller unit")
    return size
