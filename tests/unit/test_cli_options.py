"""A card's options, made from its constructor."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Literal

import click
import pytest

from softcard import Card, DeclarationError
from softcard.cli.errors import CardCodeError
from softcard.cli.options import PREFIX, card_options, describe, described_arguments, make_card
from softcard.errors import UsageError
from softcard.model.options import Size


class Speed(enum.Enum):
    SLOW = 1
    VERY_FAST = 2


class Plain(Card):
    vendor_id, device_id = 1, 2


class Tunable(Plain):
    """A card with
    an option of each kind.

    More about it.

    Args:
        size: bytes of memory;
            a second line.
        count (int): how many.

    Raises:
        UsageError: never.
    """

    def __init__(
        self,
        *,
        size: Size = Size(4096),  # noqa: B008
        count: int = 3,
        ratio: float = 0.5,
        name: str | None = None,
        file: Path | None = None,
        block: Literal[512, 4096] = 512,
        speed: Speed = Speed.SLOW,
        quiet: bool = False,
        cache: bool = True,
        backend: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.given: dict[str, object] = {
            "size": size, "count": count, "ratio": ratio, "name": name, "file": file,
            "block": block, "speed": speed, "quiet": quiet, "cache": cache, "backend": backend,
        }  # fmt: skip


def parse(card: type[Card], *arguments: str) -> Card:
    command = click.Command("test", params=list(card_options(card)))
    context = command.make_context("test", list(arguments))
    return make_card(card, context.params, None)


def given(*arguments: str) -> dict[str, object]:
    card = parse(Tunable, *arguments)
    assert isinstance(card, Tunable)
    return card.given


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--size", "1.5M"], "size", 3 << 19),
        (["--count", "0x10"], "count", 16),
        (["--ratio", "0.25"], "ratio", 0.25),
        (["--name", "x y"], "name", "x y"),
        (["--file", "a/b"], "file", Path("a/b")),
        (["--block", "4096"], "block", 4096),
        (["--speed", "very-fast"], "speed", Speed.VERY_FAST),
        (["--quiet"], "quiet", True),
        (["--no-cache"], "cache", False),
        (["--cache"], "cache", True),
    ],
)
def test_an_option_has_the_type_of_its_parameter(
    arguments: list[str], name: str, value: object
) -> None:
    result = given(*arguments)[name]
    assert result == value
    assert type(result) is type(value) or isinstance(result, Size)


def test_an_option_that_is_not_given_has_the_parameters_default() -> None:
    card = Tunable()
    assert given() == card.given


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "5x"], "size '5x' is not a number of bytes"),
        (["--count", "five"], "'five' is not an integer"),
        (["--block", "513"], "'513' is not one of '512', '4096'"),
        (["--speed", "medium"], "'medium' is not one of 'slow', 'very-fast'"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(arguments: list[str], complaint: str) -> None:
    with pytest.raises(click.BadParameter, match=complaint):
        given(*arguments)


def test_a_parameter_that_no_text_can_give_has_no_option() -> None:
    assert f"{PREFIX}backend" not in [option.name for option in card_options(Tunable)]


def test_a_required_parameter_that_no_text_can_give_is_an_error() -> None:
    class Needy(Plain):
        def __init__(self, backend: list[int]) -> None:
            super().__init__()

    with pytest.raises(DeclarationError, match="no option can be made of parameter backend of Nee"):
        card_options(Needy)


def test_a_required_parameter_is_a_required_option() -> None:
    class Needy(Plain):
        def __init__(self, *, lanes: int) -> None:
            super().__init__()
            self.lanes = lanes

    with pytest.raises(click.MissingParameter):
        parse(Needy)
    card = parse(Needy, "--lanes", "4")
    assert isinstance(card, Needy)
    assert card.lanes == 4


def test_help_comes_from_the_docstring() -> None:
    assert describe(Tunable) == "A card with an option of each kind."
    assert described_arguments(Tunable) == {
        "size": "bytes of memory; a second line.",
        "count": "how many.",
    }
    help_of = {option.name: option.help for option in card_options(Tunable)}
    assert help_of[f"{PREFIX}size"] == "bytes of memory; a second line.  [default: 4 KiB]"
    assert help_of[f"{PREFIX}name"] == ""


def test_an_exception_of_the_constructor_is_the_cards_own() -> None:
    class Broken(Plain):
        def __init__(self) -> None:
            raise KeyError("no such thing")

    with pytest.raises(CardCodeError) as caught:
        make_card(Broken, {}, None)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_card_may_refuse_an_option_with_a_sentence_of_its_own() -> None:
    class Picky(Plain):
        def __init__(self, *, lanes: int = 1) -> None:
            super().__init__()
            if lanes > 1:
                raise UsageError(f"{lanes} lanes are too many: choose 1")

    with pytest.raises(UsageError, match="2 lanes are too many"):
        make_card(Picky, {f"{PREFIX}lanes": 2}, None)
