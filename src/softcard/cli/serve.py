"""`softcard serve`: a card in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from softcard.cli.card_command import CardCommand, class_of, source_of
from softcard.cli.errors import show_log
from softcard.cli.guest import completion_timeout_option, ended_by_signals
from softcard.cli.options import make_card
from softcard.cli.output import err, print_at_once
from softcard.errors import UsageError

if TYPE_CHECKING:
    from softcard.model.card import Card

Changed = Callable[[bool], None]


class Server(Protocol):
    """What serves a card until it is stopped."""

    def stop(self) -> None:
        """End all connections and listen no longer."""


@click.command(cls=CardCommand)
@click.argument("card", metavar="CARD")
@click.option(
    "--socket", type=click.Path(path_type=Path), metavar="PATH",
    help="Serve an embedded Linux of another softcard run at this socket.",
)  # fmt: skip
@click.option(
    "--listen", metavar="ADDRESS",
    help="Serve any vfio-user client, such as QEMU, at this socket, or at tls://HOST:PORT.",
)  # fmt: skip
@click.option(
    "--tls", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where ca.pem, cert.pem and key.pem are; softcard certificates makes them.",
)  # fmt: skip
@click.option(
    "--plain-tcp", is_flag=True,
    help="Listen at tcp://HOST:PORT on a network: everything passes readable, for anybody.",
)  # fmt: skip
@completion_timeout_option
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    card: str,
    socket: Path | None,
    listen: str | None,
    tls: Path | None,
    plain_tcp: bool,
    completion_timeout: float,
    **parameters: Any,
) -> None:
    """Serve CARD until Ctrl-C, for a guest in another process or on another machine.

    The guest outlives this process: when it ends, or is killed, the driver sees a card that was
    pulled.

    \b
    softcard serve nvme --size 1G --socket /tmp/card
    softcard run uml:/tmp/card --shell                            in another terminal

    \b
    softcard serve nvme --size 1G --listen /tmp/card
    softcard run vfio-user:/tmp/card --shell                      in another terminal

    \b
    softcard serve nvme --size 1G --listen tls://0.0.0.0:4711 --tls keys/server
    softcard run tls://pi:4711 --tls keys/client --shell          on another machine
    """
    if (socket is None) == (listen is None):
        raise click.UsageError("where? Give either --socket PATH or --listen ADDRESS", ctx)
    if listen is None and (tls is not None or plain_tcp):
        raise click.UsageError("--tls and --plain-tcp go with --listen tls://HOST:PORT", ctx)
    source = source_of(ctx)
    assert source is not None
    made = make_card(class_of(ctx), parameters, source.file)
    name = type(made).__name__
    print_at_once()
    show_log()

    def changed(connected: bool) -> None:
        err().print(f"{name} is {'plugged in' if connected else 'unplugged'}", style="dim")

    with ended_by_signals():
        if socket is not None:
            server, hint = _serve_uml(made, socket, completion_timeout, changed)
        else:
            assert listen is not None
            server, hint = _serve_vfio_user(
                made, listen, tls, plain_tcp, completion_timeout, changed
            )
        try:
            err().print(f"{name} waits {hint}; Ctrl-C ends it", style="dim", markup=False)
            threading.Event().wait()
        finally:
            server.stop()


def _serve_uml(card: Card, path: Path, timeout: float, changed: Changed) -> tuple[Server, str]:
    from softcard.bus.uml import CardServer

    server = CardServer(card, path, completion_timeout=timeout, changed=changed)
    return server, f"at {path}: softcard run uml:{path} plugs it in"


def _serve_vfio_user(
    card: Card, text: str, tls: Path | None, plain_tcp: bool, timeout: float, changed: Changed
) -> tuple[Server, str]:
    from softcard.bus.vfio_user import VfioUserServer
    from softcard.wire.address import UnixAddress, check_private, parse_address
    from softcard.wire.tls import Credentials

    address = parse_address(text)
    check_private(address, plain_allowed=plain_tcp)
    if isinstance(address, UnixAddress) and tls is not None:
        raise UsageError(
            f"{text} is a socket of this machine, where --tls has no use: leave it out"
        )
    server = VfioUserServer(
        card,
        address,
        credentials=Credentials(tls) if tls is not None else None,
        completion_timeout=timeout,
        changed=changed,
    )
    if isinstance(address, UnixAddress):
        return server, f"at {address}: softcard run vfio-user:{address} plugs it in"
    there = f"{address.scheme}://{'HOST' if address.host in ANY_HOST else address.host}"
    more = " --tls FOLDER" if address.scheme == "tls" else ""
    return server, f"at {address}: softcard run {there}:{address.port}{more} plugs it in"


ANY_HOST = ("0.0.0.0", "::")
