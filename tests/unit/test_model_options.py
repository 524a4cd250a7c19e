from __future__ import annotations

import pytest

from softcard.errors import UsageError
from softcard.model.options import Size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0", 0),
        ("1K", 1024),
        ("512m", 512 << 20),
        ("1G", 1 << 30),
        ("2 TiB", 2 << 40),
        ("3GB", 3 << 30),
        ("1.5G", 3 << 29),
        (" 8P ", 8 << 50),
    ],
)
def test_text_becomes_bytes(text: str, size: int) -> None:
    assert Size(text) == size


@pytest.mark.parametrize("text", ["", "G", "1X", "-1", "1GG", "1.5", "0.3K", "1e9", "٣"])
def test_other_text_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="size"):
        Size(text)


def test_a_number_is_a_size() -> None:
    assert Size(4096) == 4096


@pytest.mark.parametrize(
    ("size", "text"), [(1 << 30, "1 GiB"), (1536, "1536 bytes"), (3 << 10, "3 KiB"), (0, "0 bytes")]
)
def test_a_size_is_shown_in_the_largest_unit_that_divides_it(size: int, text: str) -> None:
    assert str(Size(size)) == text
