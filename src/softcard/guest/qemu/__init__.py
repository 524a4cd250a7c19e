"""Stock Linux in QEMU, with cards over vfio-user."""

from softcard.guest.qemu.bus import QemuBus, QemuSlot
from softcard.guest.qemu.errors import QemuError
from softcard.guest.qemu.guest import QemuGuest
from softcard.guest.qemu.kernel import StockKernel, stock_kernel

__all__ = ["QemuBus", "QemuError", "QemuGuest", "QemuSlot", "StockKernel", "stock_kernel"]
