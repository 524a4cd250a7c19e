"""A card: what is plugged into a slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from softcard.errors import DeclarationError, PlugError
from softcard.model.function import Function
from softcard.model.link import Upstream
from softcard.model.loop import CardLoop

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
        super().__init__()
        self.functions: list[Function] = [self, *(kind() for kind in self.more_functions)]
        for function in self.functions:
            function.card = self

    @property
    def in_multi_function_card(self) -> bool:
        """Whether the card has more functions than this one."""
        return bool(self.more_functions)

    def plugged(self, loop: CardLoop, upstreams: Sequence[Upstream]) -> None:
        """A bus plugs the card in: its code runs on `loop`, one upstream for each function.

        Raises:
            PlugError: it is plugged in already, or asks for what the bus cannot do.
        """
        if self.current_loop is not None:
            raise PlugError(
                f"{type(self).__name__} is plugged in already: unplug it first, or make another"
            )
        self.current_loop = loop
        for function, upstream in zip(self.functions, upstreams, strict=True):
            function.endpoint.connect(upstream)

    def unplugged(self) -> None:
        """A bus has unplugged the card."""
        for function in self.functions:
            function.endpoint.disconnect()
        self.current_loop = None
