"""Plugs a card that another process serves in again, when its connection has ended and it is there
again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from softcard.bridge.vfio_user import VfioUserCard
from softcard.cli.errors import tell
from softcard.cli.output import err
from softcard.errors import PlugError, SoftcardError

if TYPE_CHECKING:
    from softcard.cli.guest import Slot

RETRY = 0.5


class Replugger:
    """Watches a card's connection; a context manager.

    Args:
        slot: where the card is plugged in.
    """

    def __init__(self, slot: Slot) -> None:
        assert isinstance(slot.card, VfioUserCard)
        self._slot = slot
        self._card = slot.card
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="replug", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._card.gone.set()
        self._thread.join()

    def _watch(self) -> None:
        address = self._card.remote.address
        while self._card.gone.wait() and not self._stop.is_set():
            try:
                self._slot.pull()
                self._say(f"the connection to {address} is lost: the card was pulled")
                if self._plug():
                    self._say(f"{address} is there again: the card is plugged in")
            except SoftcardError as error:
                if not self._stop.is_set():
                    tell(str(error))
                return

    def _plug(self) -> bool:
        """Plug the card in as soon as it can be reached; False when there is no need any more."""
        while not self._stop.wait(RETRY):
            try:
                self._slot = self._slot.bus.plug(self._card)
            except PlugError:
                continue  # nobody is there yet
            return True
        return False

    @staticmethod
    def _say(text: str) -> None:
        err().print(text, style="dim", markup=False)
