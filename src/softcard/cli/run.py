"""`softcard run`: a card in an embedded Linux, and something to do there."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
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
    HOST,
    QEMU,
    UML,
    VFIO_USER,
    GuestOptions,
    booted,
    check_bus,
    check_modules,
    ended_by_signals,
    guest_options,
    opened,
)
from softcard.cli.options import make_card
from softcard.cli.output import err, out, print_at_once
from softcard.cli.source import CardFile, Distant, Served, Source
from softcard.errors import GuestError, UsageError
from softcard.model.card import Card

if TYPE_CHECKING:
    from softcard.cli.guest import GuestBus, Slot
    from softcard.cli.reload import Reloader
    from softcard.cli.replug import Replugger
    from softcard.guest.channel import Process
    from softcard.guest.guest import Guest

    Watcher = Callable[[Slot], AbstractContextManager[object]]

CHUNK = 1 << 16
END_TIMEOUT = 2.0


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
        check_bus(options)
        check_modules(options.modules)
        if source is None and options.bus != UML:
            raise UsageError(
                f"{parameters['card']} is served for the uml bus only: serve the card with "
                "softcard serve --listen, and name it vfio-user:SOCKET"
            )
        if source is None:
            path = Path(parameters["card"].removeprefix(REMOTE))
            return run_in_guest(lambda bus: bus.plug_socket(path), options, action, nullcontext)
        if isinstance(source, Served) and options.guest == QEMU:
            path = source.path
            return run_in_guest(lambda bus: bus.plug_socket(path), options, action, nullcontext)
        card = make_card(class_of(ctx), parameters, source.file)
        if options.bus == VFIO_USER and options.guest is None:
            if shell or reload or action.command or options.modules:
                raise UsageError(
                    "--bus vfio-user alone only serves the card: add --guest qemu for a guest in "
                    "which something can be done"
                )
            return serve_here(card, options)
        reloader: Watcher = partial(_reloader, source, parameters) if reload else nullcontext
        if isinstance(source, Served | Distant):
            reloader = _replugger
        if options.bus == HOST:
            return run_on_machine(card, options, action, reloader)
        return run_in_guest(lambda bus: bus.plug(card), options, action, reloader)

    return command


run = make_command(
    RunCommand,
    "run",
    """Plug CARD into a Linux and do something there: an embedded one, a stock one in QEMU, or this
    machine's own.

    CARD is a Python file (printer.py, or printer.py:Printer where it has several), a card that is
    shipped (softcard cards lists them), uml:SOCKET or tls://HOST:PORT for one that softcard serve
    serves, or vfio-user:SOCKET for one of any vfio-user server. It has options of its own: softcard
    run nvme --help shows them.

    \b
    softcard run printer.py --shell
    softcard run nvme --size 1G -- mkfs.ext4 /dev/nvme0n1
    softcard run printer.py --reload --shell
    softcard run nvme --bus vfio-user --guest qemu -- lsblk
    softcard run nvme --bus host -- lsblk

    The exit status is that of the command or the shell. Without either, the card stays
    until Ctrl-C.
    """,
)


def run_from_file(card: type[Card]) -> None:
    """The command line of a card's own file; ends the process."""
    main = sys.modules["__main__"]
    file = Path(str(main.__file__)).resolve()

    class OwnCommand(RunCommand):
        given = _OwnFile(file.name, file, card.__name__, card)

    command = make_command(OwnCommand, file.name, f"Plug {card.__name__} into a Linux.")
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
    plug: Callable[[GuestBus], Slot],
    options: GuestOptions,
    action: Action,
    reloader: Watcher,
) -> int:
    """Plug a card in, boot, and do what the user wants; the exit status.

    Args:
        plug: plugs the card in.
        options: the guest's options.
        action: what to do in the guest.
        reloader: what plugs the card in again meanwhile.
    """
    print_at_once()
    show_log(options.log)
    with ended_by_signals(), opened(options) as bus:
        slot = plug(bus)
        with booted(bus, options) as guest, reloader(slot):
            return perform(action, guest, slot)


def run_on_machine(card: Card, options: GuestOptions, action: Action, reloader: Watcher) -> int:
    """Plug a card into this machine's own bus, and do what the user wants; the exit status."""
    from softcard.cli.machine import opened_machine, plug

    print_at_once()
    show_log(options.log)
    with ended_by_signals(), opened_machine(options) as (bus, guest):
        slot = plug(bus, card)
        with reloader(slot):
            return perform(action, guest, slot, on_machine=True)


def serve_here(card: Card, options: GuestOptions) -> int:
    """Serve a card over vfio-user until Ctrl-C, and say what to type for a virtual machine."""
    from softcard.bus.vfio_user import VfioUserServer
    from softcard.cli.vmm import lines

    name = type(card).__name__

    def changed(connected: bool) -> None:
        err().print(f"{name} is {'plugged in' if connected else 'unplugged'}", style="dim")

    print_at_once()
    show_log(options.log)
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="softcard-") as folder:
        server = VfioUserServer(
            card, Path(folder, "card"), completion_timeout=options.completion_timeout,
            changed=changed,
        )  # fmt: skip
        try:
            for line in lines(server.paths):
                out().print(line, markup=False)
            err().print(f"{name} waits for a virtual machine; Ctrl-C ends it", style="dim")
            threading.Event().wait()
        finally:
            server.stop()
    return 0


def perform(action: Action, guest: Guest, slot: Slot, *, on_machine: bool = False) -> int:
    """Do what the user wants in the guest, or on this machine; the exit status."""
    if action.command:
        return run_command(guest, action.command)
    if action.shell:
        then = "unplugs it" if on_machine else "ends the guest"
        err().print(f"The card is at {slot.address}; exit {then}.", style="dim")
        with _whole_line_ends():
            return guest.shell()
    until = " until Ctrl-C" if on_machine else ", and the guest runs until Ctrl-C"
    err().print(
        f"The card is at {slot.address}{until}. "
        "To do something there, add --shell, or -- and a command.", style="dim",
    )  # fmt: skip
    status = guest.process.wait()
    raise GuestError(
        f"the guest has ended (status {status}); its log ends with:\n{guest.log.tail()}"
    )


def run_command(guest: Guest, command: list[str]) -> int:
    """Run a command with this process's own standard streams; its exit status."""
    process = guest.start(command)
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        process.end_input()
    else:
        threading.Thread(
            target=_forward_input, args=(process, sys.stdin.fileno()), name="input", daemon=True
        ).start()
    try:
        return process.wait(
            None, lambda data: _write(sys.stdout, data), lambda data: _write(sys.stderr, data)
        )
    except (KeyboardInterrupt, SystemExit):
        # On the machine itself it would outlive us otherwise, and with it, its hold on the card.
        end_process(process)
        raise


def end_process(process: Process) -> None:
    """End a command, also one that does not want to."""
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            process.kill(number)
            try:
                process.wait(END_TIMEOUT)
            except TimeoutError:
                continue
            return
    except GuestError:
        pass  # with all that ran there, the guest has ended


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


def _reloader(source: Source, parameters: dict[str, Any], slot: Slot) -> Reloader:
    from softcard.cli.reload import Reloader

    return Reloader(slot, source, parameters)


def _replugger(slot: Slot) -> Replugger:
    from softcard.cli.replug import Replugger

    return Replugger(slot)


def _refuse_rest(ctx: click.Context, rest: tuple[str, ...]) -> None:
    if rest:
        raise click.UsageError(
            f"what is {rest[0]}? To run a command in the guest, put -- before it", ctx
        )
