"""The vfio-user bus with QEMU behind it: eight slots, and a stock Linux that can be booted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Self

from softcard.bus.vfio_user import VfioUserServer
from softcard.bus.vfio_user.server import COMPLETION_TIMEOUT
from softcard.errors import PlugError, UsageError
from softcard.guest.qemu import machine
from softcard.guest.qemu.guest import QemuGuest
from softcard.guest.qemu.kernel import StockKernel, stock_kernel
from softcard.model.card import MAX_FUNCTIONS, Card
from softcard.pcie.capabilities import MsiX

TIMEOUT = 60.0
MEMORY = 512 << 20
MIN_MEMORY = 128 << 20


class QemuBus:
    """Slots for up to eight cards, and QEMU, which boots a stock Linux with them.

    Cards may be plugged in before Linux boots or while it runs.

    Args:
        kernel: the kernel: what `stock_kernel` gives, or a file such as `/boot/vmlinuz`; the one
            that `softcard qemu get` has fetched when left out.
        memory: bytes of memory, taken only as far as they are used.
        arguments: further words for the kernel's command line.
        echo: called with each line of the kernel log as it comes.
        completion_timeout: seconds that a register read may take; see `VfioUserServer`.
        processors: how many the guest gets; what is fastest when left out.
        cpu: what they are, as QEMU's `-cpu` has it; all that this machine can do when left out.

    Attributes:
        guest: the Linux behind the bus; None while there is none.
    """

    def __init__(
        self,
        *,
        kernel: StockKernel | Path | None = None,
        memory: int = MEMORY,
        arguments: Sequence[str] = (),
        echo: Callable[[str], None] | None = None,
        completion_timeout: float = COMPLETION_TIMEOUT,
        processors: int | None = None,
        cpu: str | None = None,
    ) -> None:
        if memory < MIN_MEMORY:
            raise UsageError(
                f"{memory} bytes of memory are too few for a guest: give at least {MIN_MEMORY}"
            )
        self.kernel = stock_kernel(kernel) if isinstance(kernel, Path) else kernel
        self.memory = memory
        self.arguments = tuple(arguments)
        self.echo = echo
        self.completion_timeout = completion_timeout
        self.processors = processors
        self.cpu = cpu
        self.guest: QemuGuest | None = None
        self._slots: dict[int, QemuSlot] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="softcard-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def boot(self) -> QemuGuest:
        """Start QEMU, with the cards that are plugged in; it ends with `close` or the bus.

        Raises:
            QemuError: there is no QEMU, or no kernel.
            GuestError: the guest does not come up; with the end of its log.
        """
        if self.guest is not None:
            raise PlugError("a guest is running behind this bus already: close it first")
        return QemuGuest(self)

    def close(self) -> None:
        """End the guest, stop serving every card, and free all resources."""
        if self.guest is not None:
            self.guest.close()
        for slot in list(self._slots.values()):
            slot.abandon()
        self._slots.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def slots(self) -> list[QemuSlot]:
        """The slots with a card, by number."""
        occupied = (self._slots[number] for number in sorted(self._slots))
        return [slot for slot in occupied if not slot.left_behind]

    @property
    def free_slots(self) -> int:
        """How many cards can still be plugged in."""
        return machine.SLOTS - len(self._slots)

    def guest_has_ended(self) -> None:
        """Called by the guest: with QEMU, what it could not forget has gone."""
        self.guest = None
        for slot in list(self._slots.values()):
            if slot.left_behind:
                slot.abandon()
                self.release(slot)

    def plug(self, card: Card) -> QemuSlot:
        """Plug a card in; returns when a running guest has enumerated it.

        Raises:
            PlugError: all eight slots are taken, the card is plugged in already, or it asks for
                what this bus cannot do.
            GuestError: the guest does not see it.
        """
        number = self._free_number()
        server = VfioUserServer(
            card, self._folder / str(number), completion_timeout=self.completion_timeout
        )
        return self._occupy(QemuSlot(self, number, server.paths, server))

    def plug_socket(self, path: Path) -> QemuSlot:
        """Plug in a card that another process serves over vfio-user at `path`.

        Function n of a card with several is looked for at `path`.n, as `VfioUserServer` has it.

        Raises:
            PlugError: all eight slots are taken, or nobody listens there.
        """
        if not path.is_socket():
            raise PlugError(f"no card is served at {path}: it is no socket")
        first = path.absolute()
        others = (first.with_name(f"{first.name}.{n}") for n in range(1, MAX_FUNCTIONS))
        paths = [first, *takewhile(Path.is_socket, others)]
        return self._occupy(QemuSlot(self, self._free_number(), paths, None))

    def _free_number(self) -> int:
        for number in range(machine.SLOTS):
            if number not in self._slots:
                return number
        if left := machine.SLOTS - len(self.slots):
            raise PlugError(
                f"no slot of QEMU is free: of {machine.SLOTS}, {left} had cards with MSI-X, which "
                "QEMU cannot forget when they are unplugged; end this guest and boot another"
            )
        raise PlugError(f"all {machine.SLOTS} slots of QEMU are taken: unplug a card first")

    def _occupy(self, slot: QemuSlot) -> QemuSlot:
        self._slots[slot.number] = slot
        if self.guest is not None:
            try:
                self.guest.add_card(slot)
            except BaseException:
                slot.abandon()
                self.release(slot)
                raise
        return slot

    def release(self, slot: QemuSlot) -> None:
        """The slot is free again."""
        self._slots.pop(slot.number, None)


class QemuSlot:
    """One place on the bus with its card.

    Attributes:
        number: 0 to 7.
        paths: the sockets at which the card's functions are served.
        card: the card; None when another process serves it.
        left_behind: the card is unplugged, but QEMU cannot forget it.
    """

    def __init__(
        self, bus: QemuBus, number: int, paths: list[Path], server: VfioUserServer | None
    ) -> None:
        self.bus = bus
        self.number = number
        self.paths = paths
        self.card = server.card if server is not None else None
        self.left_behind = False
        self._server = server

    @property
    def address(self) -> str:
        """The PCI address of function 0 in the guest, such as `0000:04:00.0`."""
        return machine.address(self.number)

    @property
    def sysfs(self) -> str:
        """The PCI device's folder in the guest."""
        return f"/sys/bus/pci/devices/{self.address}"

    def unplug(self, timeout: float = TIMEOUT) -> None:
        """Orderly removal: the driver lets go while the card still answers, then it is taken out.

        A card with MSI-X cannot be taken out of QEMU, which would abort (seen with 11.1.3). It is
        taken out of Linux, and its slot stays in use until the guest ends.

        Raises:
            PlugError: the slot is empty already.
            GuestError: the driver does not let go within `timeout` seconds; the card stays.
        """
        self._check_occupied()
        guest = self.bus.guest
        if guest is None:
            self._leave()
        elif self._has_msix:
            guest.forget_card(self, timeout)
            self._leave_behind()
        else:
            guest.remove_card(self, timeout)
            self._leave()

    def pull(self, timeout: float = TIMEOUT) -> None:
        """Surprise removal: the driver finds that its card has gone; returns when it has noticed.

        Only a card of this process can be pulled. What `unplug` says of MSI-X is so here, too.

        Raises:
            PlugError: the slot is empty already, or another process serves the card.
            GuestError: the guest does not notice within `timeout` seconds.
        """
        self._check_occupied()
        if self._server is None:
            raise PlugError(
                f"the card in slot {self.number} is served by another process: end that, which "
                "QEMU may not survive, or unplug the card"
            )
        self._server.pull()
        self.unplug(timeout)

    @property
    def _has_msix(self) -> bool:
        # Of a card in another process nobody here knows.
        return self.card is None or any(
            capability.id == MsiX.id
            for function in self.card.functions
            for capability in function.config.capabilities
        )

    def _leave(self) -> None:
        self.abandon()
        self.bus.release(self)

    def _leave_behind(self) -> None:
        """QEMU keeps its end, and with it the slot; the card itself is free again."""
        if self._server is not None:
            self._server.pull()
        self.card = None
        self.left_behind = True

    def _check_occupied(self) -> None:
        if self not in self.bus.slots or self.left_behind:
            raise PlugError(f"slot {self.number} is empty: its card is unplugged already")

    def abandon(self) -> None:
        """Stop serving the card, with no word to the guest."""
        if self._server is not None:
            self._server.stop()
