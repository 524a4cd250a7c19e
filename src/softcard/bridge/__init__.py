"""Bridge cards: cards whose behaviour comes from elsewhere."""
