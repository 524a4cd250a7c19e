"""An NVMe solid-state disk."""

from softcard.cards.nvme.card import Nvme
from softcard.cards.nvme.health import CriticalWarning

__all__ = ["CriticalWarning", "Nvme"]
