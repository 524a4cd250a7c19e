"""`softcard certificates`: what a card needs to be served over a network."""

from __future__ import annotations

from pathlib import Path

import click

from softcard.cli.output import err


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
def certificates(folder: Path, hosts: tuple[str, ...]) -> None:
    """Make certificates in FOLDER for a card that is served on HOST.

    HOST is a name or an address by which the serving machine is reached; there may be several.
    FOLDER/server goes to that machine, FOLDER/client to the one where the card is plugged in.

    \b
    softcard certificates keys pi 192.168.1.20
    softcard serve nvme --size 1G --listen tls://0.0.0.0:4711 --tls keys/server    on pi
    softcard run tls://pi:4711 --tls keys/client --shell                           here
    """
    from softcard.wire.certificates import make_certificates

    make_certificates(folder, hosts)
    err().print(
        f"{folder / 'server'} is for the machine that serves the card, {folder / 'client'} for the "
        "one where it is plugged in; keep both private.", style="dim",
    )  # fmt: skip
