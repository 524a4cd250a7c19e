"""An NVMe solid-state disk."""

from softcard.cards.nvme.card import Nvme

__all__ = ["Nvme"]
