"""Taking a card out of its slot, with the driver's consent or without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softcard.cli.output import err
from softcard.errors import GuestError

if TYPE_CHECKING:
    from softcard.cli.guest import Slot

LET_GO_TIMEOUT = 5.0


def take_out(slot: Slot) -> None:
    """Unplug a card; pull it where the driver does not let go.

    Raises:
        GuestError: the driver does not even let go of a card that has gone.
    """
    try:
        slot.unplug(LET_GO_TIMEOUT)
    except GuestError:
        err().print("the driver does not let go of the card: it is pulled", style="dim")
        slot.pull()
