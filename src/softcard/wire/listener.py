"""Takes connections: each as a stream that is ready to carry messages."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from softcard.errors import UsageError
from softcard.wire.address import Address, UnixAddress
from softcard.wire.stream import MessageStream
from softcard.wire.tls import Credentials, TlsStream, reason, tune

log = logging.getLogger("softcard.wire")

MAX_SOCKET_PATH = 107
HANDSHAKE_TIMEOUT = 5.0
HANDSHAKES_AT_ONCE = 8
POLL = 0.5
SHORTAGE = 0.1


class Listener(Protocol):
    """Something that connections come from."""

    def fileno(self) -> int:
        """Readable when one has come."""

    def accept(self) -> MessageStream | None:
        """The next one, without waiting."""

    def close(self) -> None:
        """Take no more."""


def listen(address: Address, credentials: Credentials | None = None) -> Listener:
    """Listen at an address.

    Args:
        address: where.
        credentials: for `tls://`.

    Raises:
        UsageError: that cannot be done.
    """
    if isinstance(address, UnixAddress):
        return PlainListener(listen_unix(address.path), address)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        sock = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise UsageError(f"cannot listen at {address}: {error.strerror or error}") from None
    if address.scheme == "tcp":
        sock.setblocking(False)
        return PlainListener(sock, address)
    if credentials is None:
        sock.close()
        raise UsageError(f"{address} needs certificates: name their folder with --tls")
    return TlsListener(sock, credentials)


class PlainListener:
    """A UNIX socket, or plain TCP."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._socket = sock
        self._address = address
        # With none left a client could be neither taken nor sent away, and would be announced
        # again and again.
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def fileno(self) -> int:
        """See `Listener.fileno`."""
        return self._socket.fileno()

    def accept(self) -> MessageStream | None:
        """See `Listener.accept`."""
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._send_away()
            return None
        if not isinstance(self._address, UnixAddress):
            tune(sock)
        return MessageStream(sock)

    def _send_away(self) -> None:
        log.error("a client at %s is sent away: too many files are open", self._address)
        if self._spare < 0:
            time.sleep(SHORTAGE)
        else:
            os.close(self._spare)
            self._spare = -1
        try:
            self._socket.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # another thread was quicker, or the client has gone by itself

    def close(self) -> None:
        """See `Listener.close`."""
        self._socket.close()
        if self._spare >= 0:
            os.close(self._spare)
        if isinstance(self._address, UnixAddress):
            self._address.path.unlink(missing_ok=True)


class TlsListener:
    """A TLS port; a connection comes out when its peer has shown who it is.

    Handshakes have threads of their own: a peer that is slow, or never ends it, keeps nobody
    waiting.
    """

    def __init__(self, sock: socket.socket, credentials: Credentials) -> None:
        self._socket = sock
        self._context = credentials.server
        self._ready: deque[MessageStream] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False
        self._slots = threading.BoundedSemaphore(HANDSHAKES_AT_ONCE)
        sock.settimeout(POLL)
        self._thread = threading.Thread(target=self._accept_all, name="TLS accept", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """See `Listener.fileno`."""
        return self._event

    def accept(self) -> MessageStream | None:
        """See `Listener.accept`."""
        with self._lock:
            stream = self._ready.popleft() if self._ready else None
            if not self._ready and not self._closed:
                try:
                    os.eventfd_read(self._event)
                except BlockingIOError:
                    pass  # nothing had come
        return stream

    def close(self) -> None:
        """See `Listener.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._event)
            for stream in self._ready:
                stream.close()
            self._ready.clear()
        self._socket.close()
        self._thread.join()

    def _accept_all(self) -> None:
        while not self._closed:
            try:
                sock, peer = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if not self._closed:
                    log.warning("no connection can be taken: %s", error.strerror)
                return
            if not self._slots.acquire(blocking=False):
                sock.close()
                continue
            threading.Thread(
                target=self._greet, args=(sock, peer[0]), name="TLS handshake", daemon=True
            ).start()

    def _greet(self, sock: socket.socket, host: str) -> None:
        try:
            sock.settimeout(HANDSHAKE_TIMEOUT)
            tune(sock)
            stream = TlsStream(self._context.wrap_socket(sock, server_side=True))
        except (ssl.SSLError, OSError) as error:
            sock.close()
            log.warning("a client at %s is refused: %s", host, reason(error))
            return
        finally:
            self._slots.release()
        with self._lock:
            if self._closed:
                stream.close()
                return
            self._ready.append(stream)
            os.eventfd_write(self._event, 1)


def check_path_length(path: Path) -> None:
    """Raise `UsageError` where `path` is too long for a UNIX socket."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise UsageError(
            f"socket path {path} is too long: {length} bytes, at most {MAX_SOCKET_PATH} are "
            "possible; choose a shorter one, or set TMPDIR to a shorter folder"
        )


def listen_unix(path: Path) -> socket.socket:
    """A listening UNIX socket at `path`, in place of one that nobody serves any more; it does not
    block.

    Raises:
        UsageError: it cannot be made.
    """
    check_path_length(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if not _bind(listener, path):
            _remove_dead(path)
            listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot make socket {path}: {error.strerror}") from None
    except UsageError:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: Path) -> bool:
    """Whether nothing was in the way."""
    try:
        listener.bind(str(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _remove_dead(path: Path) -> None:
    """Remove a socket that nobody listens at any more."""
    if not path.is_socket():
        raise UsageError(f"{path} exists and is no socket: choose another path, or remove it")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
        return
    except OSError:
        pass  # it takes nobody else just now
    finally:
        probe.close()
    raise UsageError(f"socket {path} is in use by another process: choose another path")
