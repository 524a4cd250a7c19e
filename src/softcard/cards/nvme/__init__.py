"""An NVMe solid-state disk."""

from softcard.cards.nvme.card import Nvme
from softcard.cards.nvme.command import Command
from softcard.cards.nvme.health import CriticalWarning
from softcard.cards.nvme.status import Status

__all__ = ["Command", "CriticalWarning", "Nvme", "Status"]
