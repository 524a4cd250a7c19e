"""The doorbell registers (NVMe 1.4, sections 3.1.24 and 3.1.25)."""

from __future__ import annotations

from softcard.cards.nvme.controller import Controller
from softcard.cards.nvme.registers import DOORBELL_STRIDE


class Doorbells:
    """A tail and a head doorbell for each queue identifier, in turn.

    They read as zero. Only whole 32-bit writes are defined; what else a driver writes is ignored.

    Args:
        controller: whose queues they belong to.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def read(self, offset: int, size: int) -> int:
        """Zero."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The host's new tail or head; bits 31:16 are reserved."""
        if size != DOORBELL_STRIDE or offset % DOORBELL_STRIDE:
            return
        index = offset // DOORBELL_STRIDE
        if index & 1:
            self._controller.completion_doorbell(index >> 1, value & 0xFFFF)
        else:
            self._controller.submission_doorbell(index >> 1, value & 0xFFFF)
