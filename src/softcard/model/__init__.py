"""The card model: what a card's author writes against, and the link that a bus sees."""
