"""What the host bus tells the kernel module of a card."""

from __future__ import annotations

from pathlib import Path

import pytest

from softcard import ResetKind
from softcard.bridge.vfio_user import VfioUserCard
from softcard.bus.host.description import Description, describe
from softcard.bus.host.port import FEATURES
from softcard.bus.vfio_user import VfioUserServer
from softcard.cards.nvme import Nvme
from softcard.model.card import Card

CAPABILITIES = 0x34
STATUS = 0x06
LOOP = 0x40


def described(card: Card) -> Description:
    card.enter_slot(FEATURES)
    try:
        card.functions[0].link.reset(ResetKind.POWER_ON)
        return describe(card.functions[0].link, 0)
    finally:
        card.leave_slot()


def test_a_served_card_is_described_as_it_would_be_here(tmp_path: Path) -> None:
    server = VfioUserServer(Nvme(), tmp_path / "card")
    try:
        assert described(VfioUserCard(tmp_path / "card")) == described(Nvme())
    finally:
        server.stop()


def test_a_list_of_capabilities_that_never_ends_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = Nvme().functions[0].link
    # The one behind the header points at itself.
    words = {STATUS: 0x10, CAPABILITIES: LOOP, LOOP: 0x01, LOOP + 1: LOOP}
    monkeypatch.setattr(link, "config_read", lambda offset, size: words.get(offset, 0))
    assert describe(link, 0).msix == 0
