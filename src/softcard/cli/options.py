"""A card's options: made from the keyword-only parameters of its constructor."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from softcard.cli.source import user_code
from softcard.errors import DeclarationError, UsageError
from softcard.model.card import Card

PREFIX = "card_option_"
PLAIN: dict[object, click.ParamType[Any]] = {
    str: click.STRING,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}


class Integer(click.ParamType[int]):
    """An integer as Python writes it: decimal, `0x1f`, `0b11`."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        try:
            return int(str(value), 0)
        except ValueError:
            self.fail(f"{value!r} is not an integer", param, ctx)


class FromText(click.ParamType[object]):
    """A type that is made from text by its constructor, such as `Size`."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.name = kind.__name__.lower()

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """See click."""
        try:
            return self.kind(value)
        except (UsageError, ValueError) as error:
            self.fail(str(error), param, ctx)


class OneOf(click.Choice[str]):
    """One of a few values that are not text themselves."""

    def __init__(self, values: Mapping[str, object]) -> None:
        super().__init__(list(values), case_sensitive=False)
        self.values = values

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        return self.values[super().convert(value, param, ctx)]


def card_options(card: type[Card]) -> list[click.Option]:
    """An option for each keyword-only parameter of the card's constructor.

    Raises:
        DeclarationError: a parameter has no default and a type that no option can have.
    """
    help_texts = described_arguments(card)
    hints = typing.get_type_hints(card.__init__)
    options = []
    for name, parameter in inspect.signature(card).parameters.items():
        required = parameter.default is parameter.empty
        kind = (
            _option_type(hints.get(name, str)) if parameter.kind is parameter.KEYWORD_ONLY else None
        )
        if kind is not None:
            options.append(_option(name, kind, parameter, help_texts.get(name, "")))
        elif required and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DeclarationError(
                f"no option can be made of parameter {name} of {card.__name__}: make it "
                "keyword-only (behind a *) with type int, float, bool, str, Path, Size, Literal "
                "or an Enum, or give it a default"
            )
    return options


def make_card(card: type[Card], parameters: Mapping[str, object], file: Path | None) -> Card:
    """Construct a card with the options that the user has given.

    Args:
        card: its class.
        parameters: what click has parsed; those of the card's options are used.
        file: the card's file, for messages.

    Raises:
        UsageError: the card refuses an option, or its declaration is wrong.
        CardCodeError: its constructor raises another exception.
    """
    arguments = {
        name.removeprefix(PREFIX): value
        for name, value in parameters.items()
        if name.startswith(PREFIX) and value is not None
    }
    with user_code(file):
        return card(**arguments)


def describe(card: type[Card]) -> str:
    """The first paragraph of the card's docstring, on one line."""
    text = inspect.cleandoc(card.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.split())


def described_arguments(card: type[Card]) -> dict[str, str]:
    """The Args section of the docstring of the class or its constructor, by name."""
    found: dict[str, str] = {}
    for doc in (card.__doc__, card.__init__.__doc__):
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(doc or ""), re.M)
        if section is None:
            continue
        name = ""
        for line in inspect.cleandoc("\n" + section[1]).splitlines():
            if entry := re.match(r"(\w+)(?: \(.*?\))?: *(.*)", line):
                name, found[entry[1]] = entry[1], entry[2]
            elif name:
                found[name] += f" {line.strip()}"
    return {name: text.strip() for name, text in found.items()}


def _option(
    name: str, kind: click.ParamType[Any], parameter: inspect.Parameter, text: str
) -> click.Option:
    flag = f"--{name.replace('_', '-')}"
    default = parameter.default
    if kind is click.BOOL:
        if default is True:
            flag, text = f"{flag}/--no-{flag[2:]}", f"{text}  [default: yes]"
        return click.Option([PREFIX + name, flag], is_flag=True, default=None, help=text.strip())
    required = default is parameter.empty
    if not required and default is not None:
        shown = default.name.lower() if isinstance(default, enum.Enum) else str(default)
        text = f"{text}  [default: {shown}]"
    return click.Option([PREFIX + name, flag], type=kind, required=required, help=text.strip())


def _option_type(hint: object) -> click.ParamType[Any] | None:
    """How text becomes a value of this type; None where it cannot."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [part for part in typing.get_args(hint) if part is not type(None)]
        return _option_type(kinds[0]) if len(kinds) == 1 else None
    if typing.get_origin(hint) is typing.Literal:
        return OneOf({str(value): value for value in typing.get_args(hint)})
    if hint is bool:
        return click.BOOL
    if hint is int:
        return Integer()
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return OneOf({member.name.lower().replace("_", "-"): member for member in hint})
    if isinstance(hint, type) and issubclass(hint, (int, str)):
        return FromText(hint)
    return None
