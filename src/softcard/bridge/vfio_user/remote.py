"""The server: the connection, and what is asked over it once the card is built."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from softcard.bridge.vfio_user.client import Client, LostError, RefusedError
from softcard.bridge.vfio_user.description import (
    Description,
    RegionFile,
    close_files,
    describe,
)
from softcard.bridge.vfio_user.regions import RemoteBar
from softcard.errors import DeclarationError, DmaError, PlugError
from softcard.model.dma import Dma
from softcard.wire import vfio_user as wire
from softcard.wire.address import Address
from softcard.wire.connect import connect
from softcard.wire.tls import Credentials
from softcard.wire.vfio_user import Command, Region

log = logging.getLogger("softcard.bridge")


class Plugged(Protocol):
    """The card's side, while it is plugged in."""

    @property
    def dma(self) -> Dma:
        """The driver's memory."""

    def interrupt(self, kind: int, vector: int, asserted: bool) -> None:
        """An interrupt that came as a message."""

    def signalled(self, fd: int) -> None:
        """An interrupt's descriptor is readable."""

    def lost(self) -> None:
        """The connection has ended."""


class Remote:
    """The connection to a server, and another one when that has ended.

    Nothing that a bus can cause raises: what a server refuses, or cannot do any more, is what a
    card does not answer.

    Args:
        address: where it is.
        credentials: for an address with `tls`.
        gone: called when the connection has ended while the card is plugged in.
    """

    def __init__(
        self, address: Address, credentials: Credentials | None, gone: Callable[[], None]
    ) -> None:
        self.address = address
        self._gone = gone
        self._credentials = credentials
        self.description: Description | None = None
        self.client: Client | None = None
        self.plugged: Plugged | None = None
        self._files: dict[int, RegionFile] = {}

    @property
    def alive(self) -> bool:
        """Whether the server can be asked."""
        return self.client is not None and self.client.alive

    def connect(self) -> Description:
        """Connect, and look at what is served; it must be what was served before.

        Raises:
            PlugError: that is not possible.
        """
        self.close()
        client = self.client = Client(connect(self.address, self._credentials), self)
        try:
            client.negotiate()
            description, self._files = describe(client)
            if self.description not in (None, description):
                raise PlugError("it serves another card now: plug that in as a new one")
        except (LostError, PlugError, DeclarationError) as error:
            self.close()
            raise PlugError(f"the vfio-user server at {self.address}: {error}") from None
        self.description = description
        return description

    def map(self, bars: list[RemoteBar]) -> None:
        """Map the memory of the BARs."""
        for bar in bars:
            file = self._files.pop(bar.number, None)
            if file is not None:
                bar.map(file)
        close_files(self._files)

    def close(self) -> None:
        """End the connection."""
        close_files(self._files)
        if self.client is not None:
            self.client.close()
            self.client = None

    # Requests.

    def attempt(self, call: Callable[[Client], object]) -> bool:
        """Ask something; whether it was answered, and with no error."""
        client = self.client
        try:
            if client is not None:
                call(client)
                return True
        except RefusedError as error:
            log.info("the vfio-user server at %s refuses %s", self.address, error)
        except LostError:
            pass  # `lost` has been called
        return False

    def read(self, region: int, offset: int, size: int) -> bytes:
        """See `regions.Server`."""
        data = b""
        client = self.client
        try:
            if client is not None and size <= client.max_transfer:
                return client.read(region, offset, size)
            while client is not None and len(data) < size:
                count = min(size - len(data), client.max_transfer)
                data += client.read(region, offset + len(data), count)
        except RefusedError as error:
            log.info("the vfio-user server at %s refuses %s", self.address, error)
        except LostError:
            pass  # `lost` has been called
        return data + b"\xff" * (size - len(data))

    def write(self, region: int, offset: int, data: bytes) -> None:
        """See `regions.Server`."""

        def post(client: Client) -> None:
            for at in range(0, len(data), client.max_transfer):
                piece = data[at : at + client.max_transfer]
                access = wire.ACCESS.pack(offset + at, region, len(piece))
                client.post(Command.REGION_WRITE, access + piece)

        self.attempt(post)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """A configuration write, which is not posted."""
        access = wire.ACCESS.pack(offset, Region.CONFIG, size)
        request = access + value.to_bytes(size, "little")
        self.attempt(lambda client: client.ask(Command.REGION_WRITE, request, least=len(access)))

    def reset(self) -> None:
        """Reset the card, if the server can."""
        if self.description is not None and self.description.resets:
            self.attempt(lambda client: client.ask(Command.DEVICE_RESET))

    # What the server asks.

    def dma_read(self, address: int, length: int) -> bytes:
        """See `client.Host`."""
        return self._dma(address, length).read(address, length)

    def dma_write(self, address: int, data: bytes) -> None:
        """See `client.Host`."""
        self._dma(address, len(data)).write(address, data)

    def _dma(self, address: int, length: int) -> Dma:
        if self.plugged is None:
            raise DmaError(address, length, "the card is not plugged in")
        return self.plugged.dma

    def interrupt(self, kind: int, vector: int, asserted: bool) -> None:
        """See `client.Host`."""
        if self.plugged is not None:
            self.plugged.interrupt(kind, vector, asserted)

    def signalled(self, fd: int) -> None:
        """See `client.Host`."""
        if self.plugged is not None:
            self.plugged.signalled(fd)

    def lost(self, why: str) -> None:
        """See `client.Host`."""
        if self.plugged is not None:
            log.warning("the vfio-user server at %s is lost: %s", self.address, why)
            self.plugged.lost()
            self._gone()
