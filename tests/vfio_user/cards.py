"""Cards for the tests with QEMU."""

from __future__ import annotations

from softcard import RO, Bar, Card, Function, Register
from softcard.cards.nvme import Nvme


class Second(Function):
    """The other half of `TwoFunctions`."""

    vendor_id, device_id = 0x1DED, 0x0F11

    class bar0(Bar, size=4096):
        number = Register(0x00, access=RO, reset=2)
        scratch = Register(0x04)


class TwoFunctions(Card):
    """Two functions, each with registers of its own."""

    vendor_id, device_id = 0x1DED, 0x0F10
    more_functions = (Second,)

    class bar0(Bar, size=4096):
        number = Register(0x00, access=RO, reset=1)
        scratch = Register(0x04)


class MsiDisk(Nvme):
    """A disk with MSI, but not MSI-X."""

    # The disk's constructor declares MSI-X, and is not heard.
    message_interrupts = property(lambda self: None, lambda self, capability: None)
