"""Connects to where a card is served."""

from __future__ import annotations

import socket
import ssl

from softcard.errors import PlugError, UsageError
from softcard.wire.address import Address, NetworkAddress, UnixAddress
from softcard.wire.stream import MessageStream
from softcard.wire.tls import Credentials, TlsStream, reason, tune

TIMEOUT = 5.0


def connect(address: Address, credentials: Credentials | None = None) -> MessageStream:
    """Connect.

    Args:
        address: where the card is served.
        credentials: for `tls://`.

    Raises:
        PlugError: nobody answers there, or not with a certificate that is vouched for.
        UsageError: there are no credentials.
    """
    if isinstance(address, NetworkAddress) and address.scheme == "tls" and credentials is None:
        raise UsageError(f"{address} needs certificates: name their folder with --tls")
    try:
        if isinstance(address, UnixAddress):
            return _connect_unix(address)
        sock = socket.create_connection((address.host, address.port), TIMEOUT)
    except OSError as error:
        raise PlugError(
            f"no card can be reached at {address}: {reason(error)}; start softcard serve there, or "
            "name another address"
        ) from None
    tune(sock)
    if address.scheme == "tcp" or credentials is None:
        return MessageStream(sock)
    return _shake_hands(sock, address, credentials)


def _connect_unix(address: UnixAddress) -> MessageStream:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(TIMEOUT)
    try:
        sock.connect(str(address.path))
    except BaseException:
        sock.close()
        raise
    return MessageStream(sock)


def _shake_hands(
    sock: socket.socket, address: NetworkAddress, credentials: Credentials
) -> MessageStream:
    try:
        return TlsStream(credentials.client.wrap_socket(sock, server_hostname=address.host))
    except ssl.SSLCertVerificationError as error:
        sock.close()
        raise PlugError(
            f"the certificate that {address} shows cannot be trusted: {reason(error)}; its "
            f"authority must be that in {credentials.folder}, and its name {address.host}"
        ) from None
    except OSError as error:
        sock.close()
        raise PlugError(f"no TLS connection to {address}: {reason(error)}") from None
