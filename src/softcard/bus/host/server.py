"""Serves one card to the machine's own kernel."""

from __future__ import annotations

import logging
import threading

from softcard.bus.host import uapi
from softcard.bus.host.description import describe
from softcard.bus.host.device import Device
from softcard.bus.host.port import FEATURES, Port
from softcard.bus.host.ring import Ring
from softcard.errors import PlugError
from softcard.model.card import Card
from softcard.model.link import ResetKind, SharedRange
from softcard.model.loop import CardLoop
from softcard.pcie.capabilities.aer import ErrorMessage

log = logging.getLogger("softcard.bus.host")

COMPLETION_TIMEOUT = 5.0
STOP_TIMEOUT = 5.0


class CardServer:
    """Puts `card` on the machine's PCI bus and serves it on a thread of its own until `stop`.

    Args:
        card: the card; the server is its slot.
        completion_timeout: seconds that a register read may take before the driver gets all-ones;
            0 for no limit, as for a debugger.

    Attributes:
        domain: the PCI domain that the card is in.
        added: set when the card is enumerated and drivers have been offered it.
        gone: set when it is off the bus.

    Raises:
        PlugError: the card is in a slot already, asks for what this bus cannot do, or the kernel
            module cannot be used.
    """

    def __init__(self, card: Card, *, completion_timeout: float = COMPLETION_TIMEOUT) -> None:
        self.card = card
        self.added = threading.Event()
        self.gone = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        card.enter_slot(FEATURES)
        try:
            self._device = Device(len(card.functions), completion_timeout)
        except BaseException:
            card.leave_slot()
            raise
        self._loop = CardLoop()
        self._loop.set_exception_handler(self.card.report_from_loop)
        self._ports: list[Port] = []
        try:
            self._ring = self._plug()
        except OSError as error:
            self._close()
            raise PlugError(f"the kernel does not take the card: {error.strerror}") from None
        except BaseException:
            self._close()
            raise
        name = f"card {type(card).__name__}"
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _plug(self) -> Ring:
        device, functions = self._device, self.card.functions
        for function in functions:
            function.link.reset(ResetKind.POWER_ON)
        found = [describe(function.link, n) for n, function in enumerate(functions)]
        for number, description in enumerate(found):
            device.set_function(description.pack(number))
        for number, function in enumerate(functions):
            for area in function.link.shared_ranges():
                self._share(number, area)
        ports = [
            Port(device, function.link, number, description, self.pull)
            for number, (function, description) in enumerate(zip(functions, found, strict=True))
        ]
        self._ports = ports
        self.card.plugged(self._loop, ports)
        for function in functions:
            function.link.reset(ResetKind.POWER_ON)
        ring = Ring(device, ports, self.added.set, self._has_gone)
        self.domain = device.plug(found[0].link)
        return ring

    def _share(self, function: int, area: SharedRange) -> None:
        try:
            self._device.share(function, area)
        except OSError as error:
            log.info(
                "%d bytes of BAR %d are served by calls, and not mapped: %s",
                area.size, area.bar, error.strerror,
            )  # fmt: skip

    def unplug(self) -> None:
        """Have the drivers let go while the card still answers; `gone` tells the end."""
        self._call(uapi.UNPLUG)

    def pull(self) -> None:
        """Surprise removal; `gone` tells when the drivers have noticed."""
        self._call(uapi.PULL)

    def send_error(self, function: int, message: ErrorMessage) -> None:
        """Send an error message to the port; nothing happens when the card has gone."""
        # SOFTCARD_ERROR_* are numbered alike.
        self._call(uapi.SEND_ERROR, uapi.ERROR.pack(function, message))

    def _call(self, command: int, argument: bytes | int = 0) -> None:
        with self._lock:
            if not self._closed:
                try:
                    self._device.call(command, argument)
                except OSError as error:
                    log.debug("the card is going already: %s", error.strerror)

    def stop(self) -> None:
        """Pull the card, and return when its code has ended."""
        self.pull()
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                log.error(
                    "a handler of %s has not returned for %g s: its thread is left behind",
                    type(self.card).__name__, STOP_TIMEOUT,
                )  # fmt: skip

    def _serve(self) -> None:
        try:
            self._loop.add_port(self._ring)
            self._loop.run_forever()
        finally:
            self._loop.remove_port(self._ring)
            self._close()

    def _close(self) -> None:
        with self._lock:
            self._closed = True
        if self.card.current_loop is not None:
            self.card.unplugged()
        self._loop.shut_down()
        for port in self._ports:
            port.close()
        self._device.close()
        self.card.leave_slot()
        self.gone.set()

    def _has_gone(self) -> None:
        self.gone.set()
        self._loop.stop()
