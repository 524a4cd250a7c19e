"""Any vfio-user server as a card on any bus."""

from softcard.bridge.vfio_user.card import VfioUserCard

__all__ = ["VfioUserCard"]
