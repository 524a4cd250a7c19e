"""TLS with both ends authenticated: each shows a certificate, and the other's must be vouched for
by the authority that both know."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

from softcard.errors import UsageError
from softcard.wire.stream import Data, HungUpError, MessageStream

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"


class Credentials:
    """A folder with the authority's certificate (ca.pem), and one's own with its key (cert.pem,
    key.pem).

    Raises:
        UsageError: a file is missing, or is not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (AUTHORITY, CERTIFICATE, KEY):
            if not (folder / name).is_file():
                raise UsageError(
                    f"{folder / name} does not exist: softcard certificates FOLDER HOST makes the "
                    "files for both ends"
                )
        self.server = self._context(ssl.PROTOCOL_TLS_SERVER)
        self.client = self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.folder / AUTHORITY)
        except (ssl.SSLError, OSError) as error:
            raise self._unusable(AUTHORITY, error) from None
        try:
            context.load_cert_chain(self.folder / CERTIFICATE, self.folder / KEY, password=_none)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise self._unusable(f"{CERTIFICATE} with {KEY}", error) from None
        return context

    def _unusable(self, what: str, error: Exception) -> UsageError:
        return UsageError(f"{what} in {self.folder} cannot be used: {reason(error)}")


def _none() -> str:
    raise ValueError("the key has a password, which nobody would be there to type")


def reason(error: Exception) -> str:
    """What went wrong, in OpenSSL's words but readable."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


class TlsStream(MessageStream):
    """A stream over a TLS connection whose handshake is done."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._tls = sock
        # OpenSSL's connection is for one thread at a time, sending or receiving.
        self._tls_lock = threading.Lock()

    @property
    def holds_more(self) -> bool:
        """Whether something was received that nothing will announce any more."""
        with self._tls_lock:
            return self._tls.pending() > 0

    def receive(self) -> bool:
        """See `MessageStream.receive`."""
        came = False
        while self.length < len(self.buffer):
            try:
                with self._tls_lock:
                    count = self._tls.recv_into(self.view[self.length :])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError as error:
                raise HungUpError(reason(error)) from None
            if not count:
                if came:
                    break
                raise HungUpError("the peer has closed the connection")
            self.length += count
            came = True
        return came

    def wait(self, timeout: float | None) -> bool:
        """See `MessageStream.wait`."""
        return self.holds_more or super().wait(timeout)

    def _send_some(self, data: Data, fds: Sequence[int]) -> int:
        if fds:
            raise ValueError("descriptors cannot pass over a network")
        try:
            with self._tls_lock:
                return self._tls.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def _close_socket(self) -> None:
        with self._tls_lock:
            super()._close_socket()


def tune(sock: socket.socket) -> None:
    """Send at once, and notice within some seconds that the other end has gone silently."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000),
    ):
        sock.setsockopt(level, option, value)
