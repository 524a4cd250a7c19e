"""The vfio-user bus: cards served to any VMM that speaks the protocol."""

from softcard.bus.vfio_user.server import VfioUserServer

__all__ = ["VfioUserServer"]
