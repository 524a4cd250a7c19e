"""The test bench: pytest's fixtures for buses and guests."""
