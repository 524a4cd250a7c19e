"""Cards on the machine's own PCI bus, through softcard's kernel module."""

from softcard.bus.host.bus import HostBus, HostSlot
from softcard.bus.host.server import CardServer

__all__ = ["CardServer", "HostBus", "HostSlot"]
