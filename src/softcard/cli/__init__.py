"""The command line: one command a file, imported when it is used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

# What `softcard --help` shows; a command's own module is imported when it runs.
COMMANDS = {
    "run": "Plug a card into a Linux, and run a command or a shell there.",
    "demo": "Watch a card work: nvme (the default), edu or printer.",
    "serve": "Serve a card at a socket, for a softcard run in another process.",
    "certificates": "Make what a card needs to be served over a network.",
    "cards": "List the cards that are shipped, with their options.",
    "doctor": "Check what this machine can run, and how to mend what is missing.",
    "kernel": "Build the embedded Linux, and modules for it.",
    "qemu": "Fetch QEMU and a stock kernel for it.",
    "host": "Install the kernel module for cards on this machine's own bus.",
}


class Commands(click.Group):
    """Imports a command when somebody asks for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a new user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, from the module of this name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"softcard.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="softcard", message="softcard %(version)s")
def softcard() -> None:
    """Turn a Python class into a PCIe card that a real, unmodified driver uses.

    \b
    softcard demo                      see it work
    softcard run printer.py --shell    plug in a card of your own
    softcard run nvme --size 1G -- lsblk
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """The `softcard` program; ends the process."""
    from softcard.cli.errors import reported

    with reported() as outcome:
        result = softcard.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="softcard",
            standalone_mode=False,
        )
        outcome.status = result if isinstance(result, int) else 0
    sys.exit(outcome.status)
