"""Interrupts of a server's card: from its eventfds, or messages, to vectors of the function."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Collection, Iterator

from softcard.bridge.vfio_user.client import Client, RefusedError
from softcard.model.interrupts import Interrupts
from softcard.pcie.capabilities import Msi, MsiX
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Command, Irq

log = logging.getLogger("softcard.bridge")

# A card may have thousands of vectors, and a driver uses few: those above are wired when they are
# first unmasked.
WIRED_AT_ONCE = 64
# Each time that a vector is signalled is a message, as long as a server does not overdo it.
REPEATED = 1024
SET = wire.DATA_EVENTFD | wire.ACTION_TRIGGER
OFF = wire.DATA_NONE | wire.ACTION_TRIGGER
UNMASK = wire.DATA_NONE | wire.ACTION_UNMASK


class Wires:
    """Wires the interrupts of the type that the driver has enabled, and no others.

    INTx is an edge for a client: the server signals once, and then not again before the client
    unmasks it. Whether the line is still asserted is therefore asked for after each access of the
    driver, by unmasking it: a server whose line is asserted signals at once.

    Args:
        interrupts: the function's.
        msi, msix: its capabilities.
        pin: it has INTx.
    """

    def __init__(
        self, interrupts: Interrupts, msi: Msi | None, msix: MsiX | None, *, pin: bool
    ) -> None:
        self._interrupts = interrupts
        self._msi = msi
        self._msix = msix
        self._pin = pin
        self._client: Client | None = None
        self._counts: tuple[int, ...] = ()
        self._kind: Irq | None = None
        self._wired: dict[int, int] = {}
        self._vectors: dict[int, int] = {}
        self._delivered: Collection[int] = ()
        self.asserted = False

    def attach(self, client: Client, counts: tuple[int, ...]) -> None:
        """Wire them at this server, which has so many of each type; its `events` then name the
        descriptors for `take`."""
        self._client, self._counts = client, counts

    def detach(self) -> None:
        """The server has nothing to do with us any more."""
        self._drop()
        self._client = self._kind = None
        self._delivered = ()

    def reset(self) -> None:
        """The card was reset, and may have forgotten what was wired.

        Raises:
            LostError: the connection has ended.
        """
        self.off()
        self.follow()

    def off(self) -> None:
        """No interrupts any more.

        Raises:
            LostError: the connection has ended.
        """
        if self._client is not None and self._kind is not None:
            self._set(self._client, OFF, self._kind, 0, 0)
        self._drop()
        self._kind = None

    def follow(self) -> None:
        """The driver may have enabled another type, or unmasked a vector.

        Raises:
            LostError: the connection has ended.
        """
        client = self._client
        if client is None:
            return
        kind = self._chosen()
        if kind != self._kind:
            self.off()
            self._kind = kind
        if kind is not None:
            for start, count in _runs(self._missing(kind), max(client.max_fds, 1)):
                self._wire(client, kind, start, count)

    def deliver(self, vectors: Collection[int]) -> None:
        """A bus that keeps the messages itself delivers these vectors, and no others.

        Raises:
            LostError: the connection has ended.
        """
        self._delivered = vectors
        self.follow()

    def _chosen(self) -> Irq | None:
        msi, msix = self._msi, self._msix
        if msix is not None and msix.control.enable:
            return Irq.MSIX
        if msi is not None and msi.control.enable:
            return Irq.MSI
        if self._delivered:
            return Irq.MSIX if msix is not None else Irq.MSI
        return Irq.INTX if self._pin else None

    def _missing(self, kind: Irq) -> Iterator[int]:
        count = self._counts[kind]
        if kind == Irq.MSI and self._msi is not None:
            count = min(count, self._msi.allocated)
        if kind == Irq.MSIX and self._msix is not None:
            count = min(count, self._msix.vectors)
        for vector in range(count):
            if vector not in self._wired and (vector < WIRED_AT_ONCE or self._unmasked(vector)):
                yield vector

    def _unmasked(self, vector: int) -> bool:
        return vector in self._delivered or (
            self._msix is not None and not self._msix.masked(vector)
        )

    def _wire(self, client: Client, kind: Irq, start: int, count: int) -> None:
        if client.by_messages:
            self._set(client, SET, kind, start, count, data=b"\1" * count)
            self._wired.update(dict.fromkeys(range(start, start + count), -1))
            return
        if not client.max_fds:
            return
        fds = _eventfds(count)
        if not fds:
            log.warning("no descriptors are left for %s from %d on", kind.name, start)
            return
        # Whatever becomes of the request, they must not be wired a second time.
        for vector, fd in enumerate(fds, start):
            self._wired[vector], self._vectors[fd] = fd, vector
            client.events.register(fd, select.EPOLLIN)
        self._set(client, SET, kind, start, count, fds=fds)

    @staticmethod
    def _set(
        client: Client,
        flags: int,
        kind: Irq,
        start: int,
        count: int,
        *,
        fds: list[int] | None = None,
        data: bytes = b"",
    ) -> None:
        size = wire.SET_IRQS.size + len(data)
        request = wire.SET_IRQS.pack(size, flags, kind, start, count) + data
        try:
            client.ask(Command.DEVICE_SET_IRQS, request, fds=fds or ())
        except RefusedError as error:
            log.warning("the server refuses to set up %s: %s", kind.name, error)

    def _drop(self) -> None:
        # Closing does not take them out: the server has them open as well.
        if self._client is not None:
            for fd in self._vectors:
                self._client.events.unregister(fd)
        _close_all(list(self._vectors))
        self._vectors.clear()
        self._wired.clear()
        self._level(False)

    # What has come.

    def take(self, fd: int) -> None:
        """An eventfd is readable."""
        vector = self._vectors.get(fd)
        count = _read(fd) if vector is not None else 0
        if vector is None or not count:
            return
        if self._kind == Irq.INTX:
            self._level(True)
        else:
            for _ in range(min(count, REPEATED)):
                self._interrupts.signal(vector)

    def message(self, kind: int, vector: int, asserted: bool) -> None:
        """An interrupt has come as a message; one that was not asked for means nothing."""
        if kind != self._kind or vector not in self._wired:
            return
        if kind == Irq.INTX:
            self._level(asserted)
        elif asserted:
            self._interrupts.signal(vector)

    def settle(self) -> None:
        """After an access of the driver: is INTx still asserted?

        Raises:
            LostError: the connection has ended.
        """
        client = self._client
        if not self.asserted or self._kind != Irq.INTX or client is None or client.by_messages:
            return
        self._set(client, UNMASK, Irq.INTX, 0, 1)
        if not _read(self._wired[0]):
            self._level(False)

    def _level(self, asserted: bool) -> None:
        if asserted and not self.asserted:
            self._interrupts.signal(0)
        elif self.asserted and not asserted:
            self._interrupts.release(0)
        self.asserted = asserted


def _eventfds(count: int) -> list[int]:
    """New ones; none at all where there are too few left."""
    fds: list[int] = []
    try:
        while len(fds) < count:
            fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    except OSError:
        _close_all(fds)
        fds = []
    return fds


def _read(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def _runs(vectors: Iterator[int], longest: int) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as start and count."""
    start = count = 0
    for vector in list(vectors):
        if count and vector == start + count and count < longest:
            count += 1
            continue
        if count:
            yield start, count
        start, count = vector, 1
    if count:
        yield start, count


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
