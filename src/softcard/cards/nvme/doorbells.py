"""The doorbell registers (NVMe 1.4, sections 3.1.24 and 3.1.25)."""

from __future__ import annotations

from collections.abc import Callable

from softcard.cards.nvme.registers import DOORBELL_STRIDE
from softcard.model.function import Function


class Doorbells:
    """A tail and a head doorbell for each queue identifier, in turn.

    They read as zero. Only whole 32-bit writes are defined; what else a driver writes is ignored.
    What is written is only noted at first: of several values that come together, the last counts.

    Args:
        function: the card.
        rung: called once the bus has handed over all that it has at hand, with the number of each
            doorbell that was written, and the value.
    """

    def __init__(self, function: Function, rung: Callable[[list[tuple[int, int]]], object]) -> None:
        self._function = function
        self._rung = rung
        self._noted: dict[int, int] = {}

    def read(self, offset: int, size: int) -> int:
        """Zero."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The host's new tail or head."""
        if size == DOORBELL_STRIDE and not offset % DOORBELL_STRIDE:
            self.writer(offset // DOORBELL_STRIDE)(value)

    def writer(self, index: int) -> Callable[[int], None]:
        """What takes the values of one doorbell."""
        noted = self._noted

        def write(value: int) -> None:
            if not noted:
                self._function.defer(self._tell)
            noted[index] = value

        return write

    def forget(self) -> None:
        """The controller was reset."""
        self._noted.clear()

    def _tell(self) -> None:
        # Bits 31:16 are reserved.
        noted = [(index, value & 0xFFFF) for index, value in self._noted.items()]
        self._noted.clear()
        self._rung(noted)
