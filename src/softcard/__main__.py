"""`python -m softcard`."""

from softcard.cli import main

main()
