"""A command whose first argument is a card, and whose options are the card's and its own."""

from __future__ import annotations

from typing import cast

import click

from softcard.cli.errors import SHOWN_NAME
from softcard.cli.options import PREFIX, card_options, describe
from softcard.cli.source import Source, did_you_mean, find, shipped_names
from softcard.model.card import Card

REMOTE = "uml:"
SOURCE, CARD, COMMAND = ("softcard.source", "softcard.card", "softcard.command")


class CardCommand(click.Command):
    """Finds the card first, because only the card knows its options.

    What follows `--` is kept for `command_of`.

    Attributes:
        takes_remote: `uml:SOCKET` may stand for a card that another process serves.
        takes_command: `-- COMMAND` may follow.
        given: the card of the file that is being run; it is then no argument.
    """

    takes_remote = False
    takes_command = False
    given: Source | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[COMMAND] = args[:at], args[at + 1 :]
            if not self.takes_command:
                raise click.UsageError("nothing can follow -- here: it runs no command", ctx)
            if not ctx.meta[COMMAND]:
                raise click.UsageError("-- is followed by no command", ctx)
        name = self._card_in(args)
        source = self.given
        if source is None and name is not None and not (self.takes_remote and is_remote(name)):
            source = find(name)
        if source is not None:
            ctx.meta[SOURCE] = source
            ctx.meta[CARD] = source.load()
            ctx.meta[SHOWN_NAME] = [] if self.given else [source.name]
            self._check_names(ctx)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise self._unknown_option(ctx, error) from None
        except click.MissingParameter as error:
            if error.param is not None and error.param.name == "card":
                raise click.UsageError(
                    "which card? Give a Python file, such as printer.py, or one of the shipped "
                    f"cards: {', '.join(shipped_names())}", ctx,
                ) from None  # fmt: skip
            raise

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then the card's."""
        card: type[Card] | None = ctx.meta.get(CARD)
        options = card_options(card) if card is not None else []
        return [*(p for p in super().get_params(ctx) if not self._is_given(p)), *options]

    def _is_given(self, parameter: click.Parameter) -> bool:
        return self.given is not None and parameter.name == "card"

    def _card_in(self, args: list[str]) -> str | None:
        """The first argument that is no option and no option's value."""
        valued = {
            text
            for parameter in self.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for text in parameter.opts
        }
        skip = False
        for text in args:
            if skip or text.startswith("-"):
                skip = not skip and text in valued
                continue
            return text
        return None

    def _check_names(self, ctx: click.Context) -> None:
        own = {text for p in self.params if isinstance(p, click.Option) for text in p.opts}
        for option in card_options(ctx.meta[CARD]):
            for taken in own.intersection(option.opts):
                raise click.UsageError(
                    f"{taken} of {ctx.meta[CARD].__name__} is an option of {ctx.command_path} "
                    "itself: give the card's parameter another name", ctx,
                )  # fmt: skip

    def _unknown_option(self, ctx: click.Context, error: click.NoSuchOption) -> click.UsageError:
        name = error.option_name
        known = [
            text for p in self.get_params(ctx) if isinstance(p, click.Option) for text in p.opts
        ]
        close = did_you_mean(name, known)
        card = ctx.meta.get(CARD)
        if card is None:
            return click.UsageError(
                f"there is no option {name}{close}; a card's own options need the card's name", ctx
            )
        options = [option.opts[0] for option in card_options(card)]
        has = f"those of the card are {', '.join(options)}" if options else "the card has none"
        return click.UsageError(f"{card.__name__} has no option {name}{close}; {has}", ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The card's options apart, before the others."""
        records: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue
            record = parameter.get_help_record(ctx)
            if record is not None:
                records[(parameter.name or "").startswith(PREFIX)].append(record)
        own, of_card = records
        if (card := ctx.meta.get(CARD)) is not None:
            with formatter.section(f"Options of {card.__name__}"):
                formatter.write_text(describe(card))
                formatter.write_paragraph()
                if of_card:
                    formatter.write_dl(of_card)
        with formatter.section("Options"):
            formatter.write_dl(own)


def is_remote(name: str) -> bool:
    """Whether this names a card that another process serves."""
    return name.startswith(REMOTE)


def command_of(ctx: click.Context) -> list[str]:
    """What followed `--`."""
    return cast(list[str], ctx.meta.get(COMMAND, []))


def source_of(ctx: click.Context) -> Source | None:
    """Where the card comes from; None for a remote one."""
    return cast("Source | None", ctx.meta.get(SOURCE))


def class_of(ctx: click.Context) -> type[Card]:
    """The card's class, loaded from its source."""
    return cast("type[Card]", ctx.meta[CARD])
