"""A connection to a server, by its address."""

from __future__ import annotations

import socket

from softcard.errors import PlugError
from softcard.wire.stream import MessageStream

TIMEOUT = 5.0


def connect(address: str) -> MessageStream:
    """Connect to a server.

    Args:
        address: the path of a UNIX socket.

    Raises:
        PlugError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(TIMEOUT)
    try:
        sock.connect(address)
    except OSError as error:
        sock.close()
        raise PlugError(
            f"no vfio-user server can be reached at {address}: "
            f"{error.strerror or error}; start one, or name another socket"
        ) from None
    return MessageStream(sock)
