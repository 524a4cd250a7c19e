"""`softcard serve`: a card in a process of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click

from softcard.cli.card_command import CardCommand, class_of, source_of
from softcard.cli.errors import show_log
from softcard.cli.guest import completion_timeout_option, ended_by_signals
from softcard.cli.options import make_card
from softcard.cli.output import err, print_at_once


@click.command(cls=CardCommand)
@click.argument("card", metavar="CARD")
@click.option(
    "--socket", required=True, type=click.Path(path_type=Path), metavar="PATH",
    help="The socket to make.",
)  # fmt: skip
@completion_timeout_option
@click.pass_context
def serve(
    ctx: click.Context, /, card: str, socket: Path, completion_timeout: float, **parameters: Any
) -> None:
    """Serve CARD at a socket until Ctrl-C, for a guest in another process.

    The guest outlives this process: when it ends, or is killed, the driver sees a card that was
    pulled.

    \b
    softcard serve nvme --size 1G --socket /tmp/card
    softcard run uml:/tmp/card --shell         in another terminal
    """
    from softcard.bus.uml import CardServer

    source = source_of(ctx)
    assert source is not None
    made = make_card(class_of(ctx), parameters, source.file)
    name = type(made).__name__
    print_at_once()
    show_log()

    def changed(connected: bool) -> None:
        err().print(f"{name} is {'plugged in' if connected else 'unplugged'}", style="dim")

    with ended_by_signals():
        server = CardServer(made, socket, completion_timeout=completion_timeout, changed=changed)
        try:
            err().print(
                f"{name} waits at {socket}: softcard run uml:{socket} plugs it in; Ctrl-C ends it",
                style="dim",
            )
            threading.Event().wait()
        finally:
            server.stop()
