"""Malformed vfio-user messages; python -m tests.fuzz_vfio_user sends more of them."""

from __future__ import annotations

from tests.fuzz_vfio_user import fuzz

MESSAGES = 20_000


def test_malformed_messages_harm_nobody() -> None:
    _, after = fuzz(MESSAGES, seed=1)
    assert after.reached
