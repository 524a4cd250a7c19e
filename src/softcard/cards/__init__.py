"""The cards that are shipped."""
