"""A card: what is plugged into a slot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

from softcard.errors import DeclarationError, PlugError
from softcard.model.function import Function
from softcard.model.link import LinkFeatures, Upstream
from softcard.model.loop import CardLoop

log = logging.getLogger("softcard.card")

MAX_FUNCTIONS = 8


class Card(Function):
    """A card, and its function 0; most cards have no other.

    Attributes:
        more_functions: classes of functions 1 to 7, in their order.
        functions: this card's functions, itself first.
    """

    more_functions: ClassVar[tuple[type[Function], ...]] = ()

    def __init__(self) -> None:
        if len(self.more_functions) >= MAX_FUNCTIONS:
            raise DeclarationError(
                f"{type(self).__name__} has {len(self.more_functions) + 1} functions: "
                f"a card has at most {MAX_FUNCTIONS}"
            )
        self.card = self
        self.current_loop: CardLoop | None = None
        self._in_slot = False
        super().__init__()
        self.functions: list[Function] = [self, *(kind() for kind in self.more_functions)]
        for function in self.functions:
            function.card = self

    @property
    def in_multi_function_card(self) -> bool:
        """Whether the card has more functions than this one."""
        return bool(self.more_functions)

    def enter_slot(self, features: LinkFeatures) -> None:
        """A bus takes the card into a slot.

        Raises:
            PlugError: it is in a slot already, or asks for what a bus with these features cannot
                do.
            DeclarationError: its constructor left out that of its base class.
        """
        name = type(self).__name__
        if not hasattr(self, "functions"):
            raise DeclarationError(
                f"{name}.__init__ does not call super().__init__(), which makes the card"
            )
        if self._in_slot:
            raise PlugError(f"{name} is plugged in already: unplug it first, or make another")
        if len(self.functions) > features.max_functions:
            raise PlugError(
                f"{name} has {len(self.functions)} functions, but a card on the {features.bus} bus "
                f"has at most {features.max_functions}: plug it into another bus"
            )
        for function in self.functions:
            for number, bar in function.bars.items():
                if bar.layout.size > features.max_bar_size:
                    raise PlugError(
                        f"BAR {number} of {name} has {bar.layout.size:#x} bytes, but the "
                        f"{features.bus} bus has room for {features.max_bar_size:#x}: make it "
                        "smaller, or plug the card into another bus"
                    )
        self._in_slot = True

    def leave_slot(self) -> None:
        """The slot is empty again."""
        self._in_slot = False

    def plugged(self, loop: CardLoop, upstreams: Sequence[Upstream]) -> None:
        """Power is on: the card's code runs on `loop`, with one upstream for each function."""
        self.current_loop = loop
        for function, upstream in zip(self.functions, upstreams, strict=True):
            function.link.connect(upstream)

    def unplugged(self) -> None:
        """Power is off: a bus has unplugged the card."""
        for function in self.functions:
            function.link.disconnect()
        self.current_loop = None

    def report_from_loop(self, _loop: object, context: dict[str, object]) -> None:
        """What the card's loop does with an error of background work; see asyncio's
        `set_exception_handler`."""
        error = context.get("exception")
        doing = str(context.get("message", "background work"))
        if isinstance(error, BaseException):
            self.endpoint.report(doing, error)
        else:
            log.error("%s: %s", type(self).__name__, doing)
