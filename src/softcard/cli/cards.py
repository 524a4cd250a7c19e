"""`softcard cards`: what is shipped."""

from __future__ import annotations

import click

from softcard.cli.options import card_options, describe
from softcard.cli.output import out
from softcard.cli.source import Shipped, shipped_names


@click.command()
def cards() -> None:
    """List the cards that are shipped, with their options."""
    from rich.table import Table

    table = Table("card", "id", "what it is", "options", box=None, padding=(0, 3, 0, 0))
    for name in shipped_names():
        card = Shipped(name).load()
        table.add_row(
            name,
            f"{card.vendor_id:04x}:{card.device_id:04x}",
            describe(card),
            " ".join(option.opts[0] for option in card_options(card)),
        )
    out().print(table, soft_wrap=False)
    out().print("\nsoftcard run CARD --help explains a card's options.", style="dim")
