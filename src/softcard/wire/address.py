"""Where a card is served: a UNIX socket, or a port that is reached over a network."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from softcard.errors import UsageError

SCHEMES = ("tls", "tcp")
_REMOTE = re.compile(r"(?P<scheme>[a-z]+)://(?:\[(?P<v6>[^]]*)\]|(?P<host>[^:/]*)):(?P<port>\d+)/?")
MAX_PORT = 65535


@dataclass(frozen=True)
class UnixAddress:
    """A UNIX socket."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def of_function(self, number: int) -> UnixAddress:
        """Where function `number` of the card is."""
        if not number:
            return self
        return UnixAddress(self.path.with_name(f"{self.path.name}.{number}"))


@dataclass(frozen=True)
class NetworkAddress:
    """A TCP port; `scheme` is `tls`, or `tcp` for a connection that anybody can read and write."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def of_function(self, number: int) -> NetworkAddress:
        """Where function `number` of the card is."""
        return NetworkAddress(self.scheme, self.host, self.port + number)

    @property
    def is_loopback(self) -> bool:
        """Whether it cannot be reached from another machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


Address = UnixAddress | NetworkAddress


def parse_address(text: str) -> Address:
    """An address as a user writes it: a path, `tls://HOST:PORT` or `tcp://HOST:PORT`.

    Raises:
        UsageError: it is none.
    """
    if "://" not in text:
        if not text:
            raise UsageError(
                "the address of a card is empty: give a socket's path or tls://HOST:PORT"
            )
        return UnixAddress(Path(text))
    match = _REMOTE.fullmatch(text)
    if match is None or match["scheme"] not in SCHEMES or not (match["v6"] or match["host"]):
        raise UsageError(
            f"address {text} is none of a card: give a socket's path, tls://HOST:PORT, or "
            "tcp://HOST:PORT on this machine"
        )
    port = int(match["port"])
    if not 0 < port <= MAX_PORT:
        raise UsageError(f"address {text} has port {port}: ports are 1 to {MAX_PORT}")
    return NetworkAddress(match["scheme"], match["v6"] or match["host"], port)


def check_private(address: Address, *, plain_allowed: bool) -> None:
    """Raise `UsageError` where anybody on a network could listen in, and that is not wanted."""
    if (
        isinstance(address, NetworkAddress)
        and address.scheme == "tcp"
        and not address.is_loopback
        and not plain_allowed
    ):
        raise UsageError(
            f"{address} would carry everything readable and for anybody: use tls://, or add "
            "--plain-tcp if the network is yours alone"
        )
