"""`softcard run`: a card in an embedded Linux, and something to do there."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softcard.cli.card_command import (
    REMOTE,
    CardCommand,
    class_of,
    command_of,
    source_of,
)
from softcard.cli.errors import reported, show_log
from softcard.cli.guest import (
    GuestOptions,
    booted,
    check_bus,
    check_modules,
    ended_by_signals,
    guest_options,
)
from softcard.cli.options import make_card
from softcard.cli.output import err, print_at_once
from softcard.cli.source import CardFile, Source
from softcard.errors import GuestError, UsageError
from softcard.model.card import Card

if TYPE_CHECKING:
    from softcard.bus.uml import UmlBus, UmlSlot
    from softcard.cli.reload import Reloader
    from softcard.guest.channel import Process
    from softcard.guest.uml import UmlGuest

CHUNK = 1 << 16


@dataclass(frozen=True)
class Action:
    """What is done in the guest: a command, a shell, or nothing but waiting."""

    command: list[str]
    shell: bool


class RunCommand(CardCommand):
    """`softcard run`."""

    takes_remote = True
    takes_command = True


def make_command(cls: type[CardCommand], name: str, text: str) -> click.Command:
    """A command with the parameters of `softcard run`."""

    @click.command(name, cls=cls, help=text)
    @click.argument("card", metavar="CARD")
    @click.argument("rest", nargs=-1, metavar="[-- COMMAND...]")
    @click.option("--shell", is_flag=True, help="Open a shell in the guest.")
    @click.option(
        "--reload", is_flag=True,
        help="Plug the card in again whenever its file is saved; the guest stays up.",
    )  # fmt: skip
    @guest_options
    @click.pass_context
    def command(
        ctx: click.Context, /, rest: tuple[str, ...], shell: bool, reload: bool, **parameters: Any
    ) -> int:
        _refuse_rest(ctx, rest)
        options = GuestOptions(**{n: parameters[n] for n in GuestOptions.__annotations__})
        action = Action(command_of(ctx), shell)
        source = source_of(ctx)
        if shell and action.command:
            raise click.UsageError("--shell and a command exclude each other", ctx)
        if reload and (source is None or source.file is None):
            raise UsageError("--reload needs a card in a file: there is nothing here to save")
        check_bus(options.bus)
        check_modules(options.modules)
        if source is None:
            path = Path(parameters["card"].removeprefix(REMOTE))
            return run_in_guest(lambda bus: bus.plug_socket(path), options, action, nullcontext)
        card = make_card(class_of(ctx), parameters, source.file)
        reloader = partial(_reloader, source, parameters) if reload else nullcontext
        return run_in_guest(lambda bus: bus.plug(card), options, action, reloader)

    return command


run = make_command(
    RunCommand,
    "run",
    """Plug CARD into an embedded Linux and do something there.

    CARD is a Python file (printer.py, or printer.py:Printer where it has several), a card that is
    shipped (softcard cards lists them), uml:SOCKET for one that softcard serve serves, or
    vfio-user:SOCKET for one of any vfio-user server. It has options of its own: softcard run nvme
    --help shows them.

    \b
    softcard run printer.py --shell
    softcard run nvme --size 1G -- mkfs.ext4 /dev/nvme0n1
    softcard run printer.py --reload --shell

    The exit status is that of the command or the shell. Without either, the guest runs until
    Ctrl-C.
    """,
)


def run_from_file(card: type[Card]) -> None:
    """The command line of a card's own file; ends the process."""
    main = sys.modules["__main__"]
    file = Path(str(main.__file__)).resolve()

    class OwnCommand(RunCommand):
        given = _OwnFile(file.name, file, card.__name__, card)

    command = make_command(OwnCommand, file.name, f"Plug {card.__name__} into an embedded Linux.")
    with reported() as outcome:
        result = command.main(prog_name=f"python {file.name}", standalone_mode=False)
        outcome.status = result if isinstance(result, int) else 0
    sys.exit(outcome.status)


@dataclass(frozen=True)
class _OwnFile(CardFile):
    """The file that Python runs: its class is there already, and is not loaded a second time."""

    loaded: type[Card] | None = None

    def load(self) -> type[Card]:
        """See `Source`."""
        assert self.loaded is not None
        return self.loaded


def run_in_guest(
    plug: Callable[[UmlBus], UmlSlot],
    options: GuestOptions,
    action: Action,
    reloader: Callable[[UmlSlot], AbstractContextManager[object]],
) -> int:
    """Plug a card in, boot, and do what the user wants; the exit status.

    Args:
        plug: plugs the card in.
        options: the guest's options.
        action: what to do in the guest.
        reloader: what watches the card's file meanwhile.
    """
    from softcard.bus.uml import UmlBus

    print_at_once()
    show_log(options.log)
    with ended_by_signals(), UmlBus(completion_timeout=options.completion_timeout) as bus:
        slot = plug(bus)
        with booted(bus, options) as guest, reloader(slot):
            return perform(action, guest, slot)


def perform(action: Action, guest: UmlGuest, slot: UmlSlot) -> int:
    """Do what the user wants in the guest; the exit status."""
    if action.command:
        return run_command(guest, action.command)
    if action.shell:
        err().print(f"The card is at {slot.address}; exit ends the guest.", style="dim")
        with _whole_line_ends():
            return guest.shell()
    err().print(
        f"The card is at {slot.address}, and the guest runs until Ctrl-C. "
        "To do something there, add --shell, or -- and a command.", style="dim",
    )  # fmt: skip
    status = guest.process.wait()
    raise GuestError(
        f"the guest has ended (status {status}); its log ends with:\n{guest.log.tail()}"
    )


def run_command(guest: UmlGuest, command: list[str]) -> int:
    """Run a command with this process's own standard streams; its exit status."""
    process = guest.start(command)
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        process.end_input()
    else:
        threading.Thread(
            target=_forward_input, args=(process, sys.stdin.fileno()), name="input", daemon=True
        ).start()
    return process.wait(
        None, lambda data: _write(sys.stdout, data), lambda data: _write(sys.stderr, data)
    )


def _forward_input(process: Process, fd: int) -> None:
    try:
        while data := os.read(fd, CHUNK):
            process.write(data)
        process.end_input()
    except (GuestError, OSError):
        pass  # the guest has ended, and whoever waits for the command hears of that


def _write(stream: Any, data: bytes) -> None:
    # The card may print to the same stream.
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


@contextmanager
def _whole_line_ends() -> Iterator[None]:
    """What the card and its log print meanwhile starts at the left: in a raw terminal, a line feed
    alone does not."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, TextIOWrapper)]
    for stream in streams:
        stream.reconfigure(newline="\r\n")
    try:
        yield
    finally:
        for stream in streams:
            stream.reconfigure(newline="\n")


def _reloader(source: Source, parameters: dict[str, Any], slot: UmlSlot) -> Reloader:
    from softcard.cli.reload import Reloader

    return Reloader(slot, source, parameters)


def _refuse_rest(ctx: click.Context, rest: tuple[str, ...]) -> None:
    if rest:
        raise click.UsageError(
            f"what is {rest[0]}? To run a command in the guest, put -- before it", ctx
        )
