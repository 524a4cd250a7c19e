"""Interrupts of completion queues (NVMe 1.4, section 7.5)."""

from __future__ import annotations

from collections.abc import Mapping

from softcard.cards.nvme.queues import CompletionQueue
from softcard.model.function import Function
from softcard.pcie.capabilities import Msi, MsiX


class QueueInterrupts:
    """Signals a vector when completions were posted; with MSI-X that is all there is to it.

    INTx is asserted while a queue of an unmasked vector holds completions. INTx and MSI obey the
    interrupt mask registers (sections 3.1.3 and 3.1.4).

    Args:
        function: the card.
        queues: the completion queues by identifier.

    Attributes:
        mask: the bits of the interrupt mask registers.
        raised: vectors that were signalled other than by MSI-X, and are to be released.
    """

    def __init__(self, function: Function, queues: Mapping[int, CompletionQueue]) -> None:
        self.mask = 0
        self._function = function
        self._queues = queues
        self._msix = function.capability(MsiX)
        self._msi = function.capability(Msi)
        self.raised: set[int] = set()

    @property
    def messages(self) -> bool:
        """Whether the driver uses MSI-X or MSI."""
        return self._function.interrupts.uses_messages

    @property
    def _by_msix(self) -> bool:
        """Whether it uses MSI-X. Where the bus keeps the messages, their enable bits may not say
        so; but it is never MSI."""
        if self._msix is None:
            return False
        by_msi = self._msi is not None and self._msi.control.enable
        return bool(self._msix.control.enable) or (self.messages and not by_msi)

    @property
    def vectors(self) -> int:
        """Vectors that a queue may name now."""
        return self._function.interrupts.vectors if self.messages else 1

    def reset(self) -> None:
        """The controller was reset: nothing is masked, and no queue is left that signals."""
        self.mask = 0
        for vector in self.raised:
            self._function.deassert(vector)
        self.raised.clear()

    def notify(self, queue: CompletionQueue) -> None:
        """The queue has new completions."""
        if not queue.interrupts:
            return
        if queue.vector not in self._function.interrupts.immediate and not self._by_msix:
            if self.mask >> queue.vector & 1:
                return
            self.raised.add(queue.vector)
        self._function.interrupt(queue.vector)

    def taken(self, vector: int) -> None:
        """The host took completions of a queue of this vector."""
        if vector in self.raised and not self._wanted(vector):
            self.raised.discard(vector)
            self._function.deassert(vector)

    def set_mask(self, bits: int) -> None:
        """The host masks these vectors."""
        self.mask |= bits
        for vector in [v for v in self.raised if bits >> v & 1]:
            self.raised.discard(vector)
            self._function.deassert(vector)

    def clear_mask(self, bits: int) -> None:
        """The host unmasks these vectors: those with completions are signalled."""
        freed = self.mask & bits
        self.mask &= ~bits
        for vector in range(freed.bit_length()):
            if freed >> vector & 1 and self._wanted(vector):
                self.raised.add(vector)
                self._function.interrupt(vector)

    def _wanted(self, vector: int) -> bool:
        """Whether a queue of this vector holds completions that interrupt."""
        return any(
            q.vector == vector and q.interrupts and not q.empty for q in self._queues.values()
        )
