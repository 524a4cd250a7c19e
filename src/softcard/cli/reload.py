"""Plugs a card in again when its file is saved."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import watchfiles

from softcard.cli.errors import CardCodeError, show_user_frames, tell
from softcard.cli.options import card_options, make_card
from softcard.cli.output import err
from softcard.cli.source import CardFile, Source
from softcard.cli.take_out import take_out
from softcard.errors import DeclarationError, SoftcardError, UsageError
from softcard.model.card import Card

if TYPE_CHECKING:
    from softcard.cli.guest import Slot

DEBOUNCE_MS = 100
STEP_MS = 30


class Reloader:
    """Watches a card's file and those beside it; a context manager.

    Args:
        slot: where the card is plugged in.
        source: what it was loaded from.
        parameters: what the user gave on the command line.
    """

    def __init__(self, slot: Slot, source: Source, parameters: Mapping[str, object]) -> None:
        assert source.file is not None
        assert slot.card is not None
        self._slot = slot
        self._card = slot.card
        self._folder = source.file.parent
        # The class of a file that Python runs is loaded from the file, too, once it has changed.
        class_name = source.class_name if isinstance(source, CardFile) else None
        self._source = CardFile(source.name, source.file, class_name)
        self._parameters = parameters
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reload", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        changes = watchfiles.watch(
            self._folder,
            watch_filter=lambda change, path: path.endswith(".py"),
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=self._stop,
            recursive=False,
            raise_interrupt=False,
        )
        for changed in changes:
            names = sorted({Path(path).name for _, path in changed})
            try:
                self._reload(", ".join(names))
            except CardCodeError as error:
                assert error.__cause__ is not None
                show_user_frames(error.__cause__)
                self._say("the card stays as it was")
            except UsageError as error:
                tell(str(error))
                self._say("the card stays as it was")
            except SoftcardError as error:
                tell(str(error))

    def _reload(self, names: str) -> None:
        kind = self._source.load()
        try:
            card = self._make(kind)
        except DeclarationError:
            raise
        except UsageError:
            # The old card may hold what the new one needs, such as a file.
            self._take_out()
            try:
                card = self._make(kind)
            except (SoftcardError, CardCodeError):
                self._plug(self._card)
                raise
        else:
            self._take_out()
        self._plug(card)
        self._say(f"{names} saved: {type(card).__name__} is plugged in anew")

    def _take_out(self) -> None:
        take_out(self._slot)

    def _plug(self, card: Card) -> None:
        self._slot = self._slot.bus.plug(card)
        self._card = card

    def _make(self, kind: type[Card]) -> Card:
        known = {option.name for option in card_options(kind)}
        parameters = {name: value for name, value in self._parameters.items() if name in known}
        return make_card(kind, parameters, self._source.file)

    @staticmethod
    def _say(text: str) -> None:
        err().print(text, style="dim", markup=False)
