"""The User Mode Linux bus: cards served over vhost-user as virtio-pcidev devices."""

from softcard.bus.uml.bus import UmlBus, UmlSlot
from softcard.bus.uml.server import CardServer

__all__ = ["CardServer", "UmlBus", "UmlSlot"]
