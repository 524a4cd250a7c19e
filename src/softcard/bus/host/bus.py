"""The bus itself: the machine's own, with a PCI domain for each card."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

from softcard.bus.host import uapi
from softcard.bus.host.server import COMPLETION_TIMEOUT, CardServer
from softcard.errors import GuestError, PlugError
from softcard.model.card import Card
from softcard.pcie.capabilities.aer import ErrorMessage

SLOTS = 64
# A disk whose driver waits for requests is let go when these time out: after 60 s, where it has
# only just begun.
TIMEOUT = 90.0
PCI_DEVICES = Path("/sys/bus/pci/devices")


class HostBus:
    """Slots on the bus of the machine that this runs on.

    Args:
        completion_timeout: seconds that a register read may take; see `CardServer`.
    """

    def __init__(self, *, completion_timeout: float = COMPLETION_TIMEOUT) -> None:
        self.completion_timeout = completion_timeout
        self._slots: list[HostSlot] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Pull every card."""
        for slot in self.slots:
            slot.abandon()
        self._slots.clear()

    @property
    def slots(self) -> list[HostSlot]:
        """The occupied slots."""
        return list(self._slots)

    def plug(self, card: Card, timeout: float = TIMEOUT) -> HostSlot:
        """Plug a card in; returns when it is enumerated and drivers have been offered it.

        Raises:
            PlugError: the card is plugged in already, asks for what this bus cannot do, or the
                kernel module cannot be used.
            GuestError: the kernel does not see it.
        """
        server = CardServer(card, completion_timeout=self.completion_timeout)
        slot = HostSlot(self, server)
        if not server.added.wait(timeout):
            server.stop()
            raise GuestError(
                f"the kernel has not enumerated the card within {timeout:g} s; see its log"
            )
        self._slots.append(slot)
        return slot

    def release(self, slot: HostSlot) -> None:
        """The slot is free again."""
        if slot in self._slots:
            self._slots.remove(slot)


class HostSlot:
    """One place on the bus with its card.

    Attributes:
        card: the card.
    """

    def __init__(self, bus: HostBus, server: CardServer) -> None:
        self.bus = bus
        self.card = server.card
        self._server = server

    @property
    def address(self) -> str:
        """The PCI address of function 0, such as `1ff00:01:00.0`."""
        return f"{self._server.domain:04x}:{uapi.CARD_BUS:02x}:00.0"

    @property
    def sysfs(self) -> str:
        """The PCI device's folder."""
        return str(PCI_DEVICES / self.address)

    def unplug(self, timeout: float = TIMEOUT) -> None:
        """Orderly removal: the driver lets go while the card still answers, then it is taken out.

        Raises:
            PlugError: the slot is empty already.
            GuestError: the driver does not let go within `timeout` seconds.
        """
        self._check_occupied()
        self._server.unplug()
        self._wait_until_gone(timeout)
        self._server.stop()
        self.bus.release(self)

    def pull(self, timeout: float = TIMEOUT) -> None:
        """Surprise removal; returns when the driver has noticed.

        Raises:
            PlugError: the slot is empty already.
            GuestError: the driver does not let go within `timeout` seconds.
        """
        self._check_occupied()
        self._server.pull()
        self._wait_until_gone(timeout)
        self._server.stop()
        self.bus.release(self)

    def send_error(self, message: ErrorMessage, function: int = 0) -> None:
        """Have a function send an error message to the root port in front of it.

        Linux's own recovery follows, as far as its advanced error reporting is there. What kind of
        error it is it reads from the function's registers: set a bit of
        `AdvancedErrorReporting.uncorrectable_status` or `correctable_status` first, without which
        Linux never lets go of the card (seen with 6.12).

        Args:
            message: which message (PCI Express Base 6.0, section 2.2.8.3).
            function: the function's number.

        Raises:
            PlugError: the slot is empty.
        """
        self._check_occupied()
        self._server.send_error(function, message)

    def _wait_until_gone(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        if not self._server.gone.wait(timeout) or not self._vanished(end):
            raise GuestError(
                f"the driver does not let go of {self.address} within {timeout:g} s; see the "
                "kernel's log"
            )

    def _vanished(self, end: float) -> bool:
        while Path(self.sysfs).exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def _check_occupied(self) -> None:
        if self not in self.bus.slots:
            raise PlugError(f"slot {self.address} is empty: its card is unplugged already")

    def abandon(self) -> None:
        """Pull the card, and do not wait for anybody."""
        self._server.stop()
