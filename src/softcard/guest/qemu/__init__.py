"""Stock Linux in QEMU, with cards over vfio-user."""

from softcard.guest.qemu.bus import QemuBus, QemuSlot

__all__ = ["QemuBus", "QemuSlot"]
