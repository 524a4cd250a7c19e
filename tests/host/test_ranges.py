"""BARs of every kind, several functions, several cards; memory that the kernel accesses itself."""

from __future__ import annotations

from tests.host.conftest import Inside


def test_two_cards_with_two_functions_and_bars_of_every_kind_are_told_apart(
    inside: Inside,
) -> None:
    said = inside("ranges", "kinds").stdout
    for kind in (
        "(32-bit, non-prefetchable) [size=4K]", "(32-bit, non-prefetchable) [size=16]",
        "(64-bit, prefetchable) [size=1M]", "(64-bit, prefetchable) [size=4G]",
    ):  # fmt: skip
        assert said.count(kind) == 2
    assert said.count("['0x1', '0x3', '0x0', '0x5']") == 2
    assert said.count("['0x2']") == 2


def test_shadows_and_memory_are_read_while_the_card_is_busy(inside: Inside) -> None:
    said = inside("ranges", "shadows").stdout
    assert said.count("['0x4030201', '0x77', '0x0']") == 2
    assert said.count("[(16, 4, 153)]") == 2
    assert said.count(r"b'w\x00\x00\x00'") == 2
