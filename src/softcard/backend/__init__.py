"""What a card keeps its data in or talks to."""
