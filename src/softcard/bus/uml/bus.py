"""The bus itself: eight slots in front of an embedded Linux."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Protocol, Self

from softcard.bus.uml.server import COMPLETION_TIMEOUT, CardServer, check_socket_path
from softcard.errors import PlugError
from softcard.model.card import Card

SLOTS = 8
TIMEOUT = 30.0


class Linux(Protocol):
    """What the bus needs of the Linux behind it."""

    def add_card(self, socket: Path, number: int) -> None:
        """Connect the card at `socket`, as platform device `number`."""

    def remove_card(self, number: int, timeout: float) -> None:
        """Have the drivers let go of platform device `number`; raises `GuestError`."""

    def wait_for_path(self, path: str, *, exists: bool, timeout: float) -> None:
        """Wait until a file of sysfs exists, or does no longer; raises `GuestError`."""


class UmlBus:
    """Slots for up to eight cards; they may be plugged in before Linux boots or while it runs.

    Args:
        completion_timeout: seconds that a register read may take; see `CardServer`.
    """

    def __init__(self, *, completion_timeout: float = COMPLETION_TIMEOUT) -> None:
        self.completion_timeout = completion_timeout
        self.linux: Linux | None = None
        self._slots: dict[int, UmlSlot] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="softcard-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving every card, with no word to the guest, and free all resources."""
        self.linux = None
        for slot in self.slots:
            slot.abandon()
        self._slots.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def slots(self) -> list[UmlSlot]:
        """The occupied slots, by number."""
        return [self._slots[number] for number in sorted(self._slots)]

    def attach(self, linux: Linux) -> None:
        """A kernel has booted with the cards of `slots` on its command line."""
        self.linux = linux
        for slot in self.slots:
            slot.wait_until_seen()

    def plug(self, card: Card) -> UmlSlot:
        """Plug a card in; returns when a running guest has enumerated it.

        Raises:
            PlugError: all eight slots are taken, the card is plugged in already, or it asks for
                what this bus cannot do.
            GuestError: the guest does not see it.
        """
        number = self._free_number()
        server = CardServer(
            card, self._folder / str(number), completion_timeout=self.completion_timeout
        )
        return self._occupy(UmlSlot(self, number, server.path, server))

    def plug_socket(self, path: Path) -> UmlSlot:
        """Plug in a card that another process serves at `path` with `CardServer`.

        Raises:
            PlugError: all eight slots are taken, or nobody listens there.
            UsageError: the path cannot be used.
        """
        check_socket_path(path)
        if not path.is_socket():
            raise PlugError(f"no card is served at {path}: start one with softcard serve")
        return self._occupy(UmlSlot(self, self._free_number(), path.absolute(), None))

    def _free_number(self) -> int:
        for number in range(SLOTS):
            if number not in self._slots:
                return number
        raise PlugError(
            f"all {SLOTS} slots of the uml bus are taken: unplug a card first, its kernel has no "
            "more"
        )

    def _occupy(self, slot: UmlSlot) -> UmlSlot:
        self._slots[slot.number] = slot
        if self.linux is not None:
            try:
                self.linux.add_card(slot.path, slot.number)
                slot.wait_until_seen()
            except BaseException:
                slot.abandon()
                self.release(slot)
                raise
        return slot

    def release(self, slot: UmlSlot) -> None:
        """The slot is free again."""
        self._slots.pop(slot.number, None)


class UmlSlot:
    """One place on the bus with its card.

    Attributes:
        number: 0 to 7.
        path: the socket at which the card is served.
        card: the card; None when another process serves it.
    """

    def __init__(self, bus: UmlBus, number: int, path: Path, server: CardServer | None) -> None:
        self.bus = bus
        self.number = number
        self.path = path
        self.card = server.card if server is not None else None
        self._server = server

    @property
    def address(self) -> str:
        """The card's PCI address in the guest, such as `0000:00:03.0`."""
        return f"0000:00:{self.number:02x}.0"

    @property
    def sysfs(self) -> str:
        """The PCI device's folder in the guest."""
        return f"/sys/bus/pci/devices/{self.address}"

    @property
    def _platform_device(self) -> str:
        return f"/sys/bus/platform/devices/virtio-uml.{self.number}"

    def wait_until_seen(self, timeout: float = TIMEOUT) -> None:
        """Wait until the guest has enumerated the card; its driver may still be starting."""
        self._linux().wait_for_path(self.sysfs, exists=True, timeout=timeout)

    def unplug(self, timeout: float = TIMEOUT) -> None:
        """Orderly removal: the driver lets go while the card still answers, then it is taken out.

        Raises:
            PlugError: the slot is empty already.
            GuestError: the driver does not let go within `timeout` seconds; the card stays.
        """
        self._check_occupied()
        if self.bus.linux is not None:
            self.bus.linux.remove_card(self.number, timeout)
        self.pull(timeout)

    def pull(self, timeout: float = TIMEOUT) -> None:
        """Surprise removal; returns when the guest has noticed.

        Raises:
            PlugError: the slot is empty already.
            GuestError: the guest does not notice within `timeout` seconds; a card that another
                process serves goes only when that process ends.
        """
        self._check_occupied()
        self.abandon()
        self.wait_until_gone(timeout)
        self.bus.release(self)

    def _check_occupied(self) -> None:
        if self not in self.bus.slots:
            raise PlugError(f"slot {self.number} is empty: its card is unplugged already")

    def wait_until_gone(self, timeout: float = TIMEOUT) -> None:
        """Wait until the guest has removed the card, after a pull or its server's death."""
        if self.bus.linux is not None:
            self.bus.linux.wait_for_path(self._platform_device, exists=False, timeout=timeout)

    def abandon(self) -> None:
        """Stop serving the card, with no word to the guest."""
        if self._server is not None:
            self._server.stop()

    def _linux(self) -> Linux:
        if self.bus.linux is None:
            raise PlugError("no guest is running behind this bus")
        return self.bus.linux
