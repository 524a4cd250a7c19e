"""Serves one card at a UNIX socket, to one embedded Linux after the other."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from softcard.bus.uml.pcidev import FEATURES
from softcard.bus.uml.vhost_user import Connection
from softcard.errors import UsageError
from softcard.model.card import Card
from softcard.model.link import ResetKind
from softcard.model.loop import CardLoop
from softcard.wire.listener import check_path_length, listen_unix

log = logging.getLogger("softcard.bus.uml")

COMPLETION_TIMEOUT = 5.0
WATCH_STEPS = 4
STOP_TIMEOUT = 5.0


class CardServer:
    """Listens at `path` and serves `card` on a thread of its own until `stop`.

    Each connection is one time that the card is plugged in: it starts with a power-on reset, and
    ends when the guest or `hang_up` ends it.

    Args:
        card: the card; the server is its slot.
        path: the socket to make; at most 107 bytes, without a colon.
        completion_timeout: seconds that a register read may take before the guest gets all-ones
            and an error is logged; 0 for no limit, as for a debugger.
        changed: called with True when a guest has connected, with False when it has gone.

    Raises:
        PlugError: the card is in a slot already, or asks for what this bus cannot do.
        UsageError: the socket cannot be made.
    """

    def __init__(
        self,
        card: Card,
        path: Path,
        *,
        completion_timeout: float = COMPLETION_TIMEOUT,
        changed: Callable[[bool], None] = lambda connected: None,
    ) -> None:
        check_socket_path(path)
        self.card = card
        self.path = path
        self._timeout = completion_timeout
        self._changed = changed
        self._loop: CardLoop | None = None
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._stopping = threading.Event()
        card.enter_slot(FEATURES)
        try:
            self._listener = listen_unix(path)
        except BaseException:
            card.leave_slot()
            raise
        self._wake_read, self._wake_write = os.pipe()
        name = f"card {type(card).__name__}"
        self._thread = threading.Thread(target=self._serve_all, name=name, daemon=True)
        self._thread.start()
        if completion_timeout:
            threading.Thread(target=self._watch, name=f"{name} watch", daemon=True).start()

    def hang_up(self) -> None:
        """End the connection, as when the card is pulled; the next one may come at once."""
        with self._lock:
            self._stop_loop()

    def _stop_loop(self) -> None:
        if self._loop is not None and self._connection is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            # The guest is to see it even when the card's code does not return.
            self._connection.hang_up()

    def stop(self) -> None:
        """End the connection and listen no longer; returns when the card's code has ended."""
        with self._lock:
            if not self._stopping.is_set():
                self._stopping.set()
                os.write(self._wake_write, b"x")
                self._stop_loop()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                log.error(
                    "a handler of %s has not returned for %g s: its thread is left behind",
                    type(self.card).__name__, STOP_TIMEOUT,
                )  # fmt: skip

    def _serve_all(self) -> None:
        listener = self._listener.fileno()
        try:
            while not self._stopping.is_set():
                readable, _, _ = select.select([listener, self._wake_read], [], [])
                if listener in readable and not self._stopping.is_set():
                    self._accept()
        finally:
            self._listener.close()
            self.path.unlink(missing_ok=True)
            with self._lock:
                self._stopping.set()
                os.close(self._wake_read)
                os.close(self._wake_write)
            self.card.leave_slot()

    def _accept(self) -> None:
        try:
            stream, _ = self._listener.accept()
            with stream:
                self._serve(stream)
        except Exception:
            # One guest's connection has failed; the next one is to be served.
            log.exception("serving %s has failed", type(self.card).__name__)

    def _serve(self, stream: socket.socket) -> None:
        loop = CardLoop()
        connection = Connection(stream, self.card.link, loop.stop)
        loop.set_exception_handler(self.card.report_from_loop)
        self.card.plugged(loop, [connection.device])
        self.card.link.reset(ResetKind.POWER_ON)
        with self._lock:
            self._loop, self._connection = loop, connection
            if self._stopping.is_set():
                self._stop_loop()
        self._changed(True)
        try:
            loop.add_port(connection)
            loop.run_forever()
        finally:
            with self._lock:
                self._loop = self._connection = None
            loop.remove_port(connection)
            connection.close()
            self.card.unplugged()
            loop.shut_down()
            self._changed(False)

    def _watch(self) -> None:
        """Give up on a read that the card does not answer, as a root complex does."""
        seen: int | None = None
        steps = 0
        while not self._stopping.wait(self._timeout / WATCH_STEPS):
            connection = self._connection
            at = connection.device.progress if connection is not None else None
            if connection is None or at is None or at != seen:
                seen, steps = at, 0
                continue
            steps += 1
            if steps < WATCH_STEPS:
                continue
            steps = 0
            if connection.device.time_out():
                log.error(
                    "completion timeout: %s has not answered a read for %g s; the driver gets "
                    "all-ones", type(self.card).__name__, self._timeout,
                )  # fmt: skip


def check_socket_path(path: Path) -> None:
    """Raise `UsageError` where `path` cannot be a socket that the kernel's option can name."""
    check_path_length(path)
    text = os.fsencode(path)
    if b":" in text or b" " in text:
        raise UsageError(
            f"socket path {path} has a colon or a space, which the kernel's option cannot name"
        )
