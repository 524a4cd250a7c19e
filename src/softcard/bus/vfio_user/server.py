"""Serves one card, each function at an address of its own, to one client after the other."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from softcard.bus.vfio_user.connection import Connection
from softcard.bus.vfio_user.layout import Layout, layout_of
from softcard.bus.vfio_user.port import FEATURES, Port
from softcard.model.card import Card
from softcard.model.link import ResetKind
from softcard.model.loop import CardLoop
from softcard.wire.address import Address, UnixAddress
from softcard.wire.listener import Listener, listen
from softcard.wire.stream import MessageStream
from softcard.wire.tls import Credentials

log = logging.getLogger("softcard.bus.vfio_user")

# QEMU gives up after 5 s.
COMPLETION_TIMEOUT = 4.0
WATCH_STEPS = 4
STOP_TIMEOUT = 5.0


class VfioUserServer:
    """Listens at `address` and serves `card` on a thread of its own until `stop`.

    The card is plugged in when a client connects to any of its functions, with a power-on reset,
    and unplugged when the last client has gone.

    Args:
        card: the card; the server is its slot.
        address: where function 0 is served; a socket's path of at most 107 bytes, or a network
            address. Function n is at the path with `.n` behind it, or at the n-th port after it.
        credentials: for an address with `tls`.
        completion_timeout: seconds that a register read may take before the client gets all-ones
            and an error is logged; 0 for no limit, as for a debugger.
        changed: called with True when the card is plugged in, with False when it is unplugged.

    Attributes:
        card: the card.
        addresses: by function.

    Raises:
        PlugError: the card is in a slot already, or asks for what this bus cannot do.
        UsageError: nobody can listen there.
    """

    def __init__(
        self,
        card: Card,
        address: Path | Address,
        *,
        credentials: Credentials | None = None,
        completion_timeout: float = COMPLETION_TIMEOUT,
        changed: Callable[[bool], None] = lambda connected: None,
    ) -> None:
        self.card = card
        first = UnixAddress(address) if isinstance(address, Path) else address
        self.addresses = [first.of_function(number) for number in range(len(card.functions))]
        self._timeout = completion_timeout
        self._changed = changed
        self._loop: CardLoop | None = None
        self._connections: dict[int, Connection] = {}
        self._ports: list[Port] = []
        self._layouts: list[Layout] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pulled = False
        self._taken_out = threading.Event()
        card.enter_slot(FEATURES)
        self._listeners: list[Listener] = []
        try:
            for where in self.addresses:
                self._listeners.append(listen(where, credentials))
        except BaseException:
            self._close_listeners()
            card.leave_slot()
            raise
        self._wake_read, self._wake_write = os.pipe()
        name = f"card {type(card).__name__}"
        self._thread = threading.Thread(target=self._serve_all, name=name, daemon=True)
        self._thread.start()
        self._watcher = threading.Thread(target=self._watch, name=f"{name} watch", daemon=True)
        if completion_timeout:
            self._watcher.start()

    @property
    def paths(self) -> list[Path]:
        """The sockets, by function; none on a network."""
        return [where.path for where in self.addresses if isinstance(where, UnixAddress)]

    def hang_up(self) -> None:
        """End all connections, as when the card is pulled; the next one may come at once."""
        with self._lock:
            for connection in self._connections.values():
                connection.hang_up()

    def pull(self) -> None:
        """Take the card out while its clients stay: they read all-ones until `stop`.

        For clients that do not bear the end of a connection. Nobody else can connect any more.
        """
        with self._lock:
            if self._stopping.is_set() or self._pulled:
                return
            self._pulled = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
            else:
                os.write(self._wake_write, b"x")
        if not self._taken_out.wait(STOP_TIMEOUT):
            log.error(
                "a handler of %s has not returned for %g s: the card stays where it is",
                type(self.card).__name__, STOP_TIMEOUT,
            )  # fmt: skip

    def stop(self) -> None:
        """End all connections and listen no longer; returns when the card's code has ended."""
        with self._lock:
            if not self._stopping.is_set():
                self._stopping.set()
                os.write(self._wake_write, b"x")
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._loop.stop)
                for connection in self._connections.values():
                    # The client is to see it even when the card's code does not return.
                    connection.hang_up()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                log.error(
                    "a handler of %s has not returned for %g s: its thread is left behind",
                    type(self.card).__name__, STOP_TIMEOUT,
                )  # fmt: skip
            if self._timeout:
                self._watcher.join(STOP_TIMEOUT)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _serve_all(self) -> None:
        poll = select.poll()
        for fd in (self._wake_read, *(listener.fileno() for listener in self._listeners)):
            poll.register(fd, select.POLLIN)
        try:
            while not (self._stopping.is_set() or self._pulled):
                poll.poll()
                for number, listener in enumerate(self._listeners):
                    ended = self._stopping.is_set() or self._pulled
                    stream = None if ended else listener.accept()
                    if stream is not None:
                        self._serve_plugged(number, stream)
        finally:
            self._close_listeners()
            with self._lock:
                self._stopping.set()
                os.close(self._wake_read)
                os.close(self._wake_write)
            self._leave_slot()

    def _leave_slot(self) -> None:
        if not self._taken_out.is_set():
            self.card.leave_slot()
            self._taken_out.set()

    def _serve_plugged(self, number: int, stream: MessageStream) -> None:
        """Serve from the first client's coming, to function `number`, to the last one's going."""
        card = self.card
        loop = CardLoop()
        loop.set_exception_handler(self.card.report_from_loop)
        self._ports = [Port(logs_writes=f.link.migratable) for f in card.functions]
        card.plugged(loop, self._ports)
        try:
            for function in card.functions:
                function.link.reset(ResetKind.POWER_ON)
            self._layouts = [layout_of(function.link) for function in card.functions]
            with self._lock:
                self._loop = loop
                if self._stopping.is_set():
                    loop.call_soon(loop.stop)
            for other, listener in enumerate(self._listeners):
                loop.add_reader(listener.fileno(), self._accept, other)
            self._connect(number, stream)
            self._changed(True)
            loop.run_forever()
        except Exception:
            log.exception("serving %s has failed", type(card).__name__)
            if number not in self._connections:
                stream.close()
        finally:
            with self._lock:
                self._loop = None
                connections = list(self._connections.values())
                pulled = self._pulled and not self._stopping.is_set()
                if not pulled:
                    self._connections.clear()
            for connection in connections:
                loop.remove_port(connection)
                if not pulled:
                    connection.close()
            for listener in self._listeners:
                loop.remove_reader(listener.fileno())
            if pulled:
                self._serve_pulled(loop, connections)
            else:
                card.unplugged()
                loop.shut_down()
                self._changed(False)

    def _serve_pulled(self, loop: CardLoop, connections: list[Connection]) -> None:
        """Serve the clients of a card that is gone, on a loop in which nothing of it is left."""
        rest = CardLoop()
        for connection in connections:
            connection.pull(rest)
        self.card.unplugged()
        loop.shut_down()
        self._leave_slot()
        self._changed(False)
        with self._lock:
            self._loop = rest
            if self._stopping.is_set() or not connections:
                rest.call_soon(rest.stop)
        try:
            rest.run_forever()
        finally:
            with self._lock:
                self._loop = None
                connections = list(self._connections.values())
                self._connections.clear()
            for connection in connections:
                rest.remove_port(connection)
                connection.close()
            rest.shut_down()

    def _accept(self, number: int) -> None:
        """Take the next client of a function that has none."""
        stream = self._listeners[number].accept()
        if stream is not None:
            self._connect(number, stream)

    def _connect(self, number: int, stream: MessageStream) -> None:
        loop = self._loop
        assert loop is not None
        function = self.card.functions[number].link
        connection = Connection(
            stream, function, self._ports[number], self._layouts[number], loop,
            lambda connection: self._gone(number, connection),
        )  # fmt: skip
        with self._lock:
            self._connections[number] = connection
        # The next one waits until this one has gone.
        loop.remove_reader(self._listeners[number].fileno())
        loop.add_port(connection)

    def _gone(self, number: int, connection: Connection) -> None:
        loop = self._loop
        assert loop is not None
        with self._lock:
            self._connections.pop(number, None)
        loop.remove_port(connection)
        connection.close()
        if not self._connections:
            loop.stop()
            return
        if self._pulled:
            return
        # Another function is still in use; this one starts anew with its next client.
        connection.function.reset(ResetKind.HOT)
        loop.add_reader(self._listeners[number].fileno(), self._accept, number)

    def _watch(self) -> None:
        """Give up on a read that the card does not answer, as a root complex does."""
        seen: dict[int, tuple[int, int]] = {}
        while not self._stopping.wait(self._timeout / WATCH_STEPS):
            for number, connection in list(self._connections.items()):
                at = connection.progress
                before, steps = seen.get(number, (None, 0))
                if at is None or at != before:
                    seen[number] = (-1 if at is None else at, 0)
                    continue
                if steps + 1 < WATCH_STEPS:
                    seen[number] = (at, steps + 1)
                    continue
                seen[number] = (at, 0)
                if connection.time_out():
                    log.error(
                        "completion timeout: %s has not answered a read for %g s; the driver gets "
                        "all-ones", type(self.card).__name__, self._timeout,
                    )  # fmt: skip
