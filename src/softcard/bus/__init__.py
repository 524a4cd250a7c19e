"""Buses: where a card is plugged in. No bus knows another, and none knows a card."""
