"""The card itself: the downstream half of the link, asked of a server."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from softcard.bridge.vfio_user.endpoint import RemoteEndpoint
from softcard.bridge.vfio_user.regions import RemoteBar
from softcard.bridge.vfio_user.remote import Remote
from softcard.errors import DeclarationError, PlugError
from softcard.model.bar import Bar
from softcard.model.card import Card
from softcard.model.endpoint import Endpoint
from softcard.model.link import LinkFeatures
from softcard.pcie.capabilities import MsiX
from softcard.wire.address import Address, parse_address
from softcard.wire.tls import Credentials

log = logging.getLogger("softcard.bridge")


class VfioUserCard(Card):
    """A card that a vfio-user server serves.

    It connects at once, and stays connected until it is unplugged. A server that goes away, or
    breaks the protocol, is a card that was pulled; plugged in again, the card connects anew.

    Args:
        address: where it is served, as a user writes it: the path of a UNIX socket, or
            tls://HOST:PORT.
        credentials: for an address with `tls`.

    Attributes:
        gone: set while the connection has ended by itself.

    Raises:
        PlugError: nobody listens there, or what is served there is no card that can be used.
        UsageError: that is no address, or it needs credentials.
    """

    def __init__(
        self, address: str | Path | Address, *, credentials: Credentials | None = None
    ) -> None:
        where = parse_address(str(address)) if isinstance(address, str | Path) else address
        self.gone = threading.Event()
        self.remote = Remote(where, credentials, self.gone.set)
        description = self.remote.connect()
        identity = description.identity
        self.vendor_id, self.device_id = identity.vendor_id, identity.device_id
        self.revision_id, self.class_code = identity.revision_id, identity.class_code
        self.subsystem_vendor_id = identity.subsystem_vendor_id
        self.subsystem_id = identity.subsystem_id
        self.interrupt_pin = identity.interrupt_pin
        try:
            for name, capability in description.declared().items():
                setattr(self, name, capability)
            super().__init__()
        except DeclarationError as error:
            self.remote.close()
            raise PlugError(f"the card at {address} is impossible: {error}") from None
        self.remote.map(self._remote_bars())
        for number in description.io_bars:
            log.warning(
                "BAR %d of the card at %s is in I/O space, which no bus has: it is memory here",
                number, address,
            )  # fmt: skip

    def _remote_bars(self) -> list[RemoteBar]:
        return [bar for bar in self.bars.values() if isinstance(bar, RemoteBar)]

    def _make_bars(self) -> dict[int, Bar]:
        description = self.remote.description
        assert description is not None
        kept: dict[int, list[tuple[int, int]]] = {}
        msix = description.declared().get("msix")
        if isinstance(msix, MsiX):
            kept.setdefault(msix.table[0], []).append((msix.table[1], 16 * msix.vectors))
            kept.setdefault(msix.pba[0], []).append((msix.pba[1], -(-msix.vectors // 64) * 8))
        return {
            number: RemoteBar(
                number, layout, description.regions[number], self.remote, kept.get(number, [])
            )
            for number, layout in description.bars
        }

    def _make_endpoint(self) -> Endpoint:
        return RemoteEndpoint(self, self.remote, self.reconnect)

    def enter_slot(self, features: LinkFeatures) -> None:
        """See `Card.enter_slot`.

        Raises:
            PlugError: the server has gone and is not there again.
        """
        super().enter_slot(features)
        try:
            self.reconnect()
        except PlugError:
            self.leave_slot()
            raise

    def reconnect(self) -> None:
        """Connect again, where the connection has ended.

        Raises:
            PlugError: nobody listens there, or another card is served there now.
        """
        if not self.remote.alive:
            for bar in self._remote_bars():
                bar.unmap()
            self.remote.connect()
            self.gone.clear()
            self.remote.map(self._remote_bars())

    def leave_slot(self) -> None:
        """See `Card.leave_slot`; the server is free for others."""
        super().leave_slot()
        self.close()

    def close(self) -> None:
        """End the connection of a card that is not plugged in."""
        self.remote.close()
