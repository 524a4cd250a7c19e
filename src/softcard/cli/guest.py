"""The options that a guest is started with, and starting it."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from softcard.cli.options import FromText
from softcard.cli.output import err
from softcard.errors import UsageError
from softcard.model.options import Size

if TYPE_CHECKING:
    from softcard.bus.host import HostBus, HostSlot
    from softcard.bus.uml import UmlBus, UmlSlot
    from softcard.guest.guest import Guest
    from softcard.guest.kernel import Kernel
    from softcard.guest.qemu import QemuBus, QemuSlot

    GuestBus = UmlBus | QemuBus
    Bus = GuestBus | HostBus
    Slot = UmlSlot | QemuSlot | HostSlot

# The guest sees this machine's files, but not those in these folders.
HIDDEN = ("/tmp", "/run", "/dev")
VISIBLE = "/var/tmp"
F = TypeVar("F", bound=Callable[..., Any])
UML, VFIO_USER, HOST, QEMU = "uml", "vfio-user", "host", "qemu"
READY = (UML, VFIO_USER, HOST)
ELSEWHERE = {
    "simulated": "it has no guest; unit tests drive it from Python, see softcard.bus.simulated",
}
MEMORY = Size("512M")


@dataclass(frozen=True)
class GuestOptions:
    """What the user has asked of the guest."""

    bus: str
    memory: int | None
    log: bool
    modules: tuple[Path, ...]
    kernel_arguments: tuple[str, ...]
    completion_timeout: float
    guest: str | None = None
    kernel: Path | None = None


def guest_options(command: F) -> F:
    """Decorates a command with the guest's options; it gets them as `GuestOptions(...)` fields."""
    for option in reversed(
        (
            click.option(
                "--bus", default="uml", show_default=True, metavar="BUS",
                help="Where the card is plugged in: uml, vfio-user, or host (this machine's own "
                "PCI bus).",
            ),
            click.option(
                "--guest", type=click.Choice([QEMU]),
                help="With --bus vfio-user: boot a stock Linux in QEMU; without it, a virtual "
                "machine of yours may use the card.",
            ),
            click.option(
                "--kernel", type=click.Path(path_type=Path), metavar="FILE",
                help="With --guest qemu: this kernel, such as /boot/vmlinuz, with its modules in "
                "/lib/modules or beside it; the one of softcard qemu get otherwise.",
            ),
            click.option(
                "--memory", type=FromText(Size), show_default=str(MEMORY),
                help="The guest's memory, taken only as far as it is used.",
            ),
            click.option(
                "--module", "modules", multiple=True, metavar="FILE",
                type=click.Path(path_type=Path),
                help="Load this kernel module (.ko) first; may be repeated.",
            ),
            click.option(
                "--kernel-arg", "kernel_arguments", multiple=True, metavar="WORD",
                help="A word for the kernel's command line; may be repeated.",
            ),
            completion_timeout_option,
            click.option(
                "-v", "--log", is_flag=True, help="Print the kernel's log, and more of the card's.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


completion_timeout_option = click.option(
    "--completion-timeout", type=click.FloatRange(min=0), default=5.0, show_default=True,
    metavar="SECONDS",
    help="How long a register read may take before the driver gets all-ones; 0 for no limit, as "
    "for a debugger.",
)  # fmt: skip


def check_bus(options: GuestOptions) -> None:
    """Raise `UsageError` unless the command line can use this bus, and this guest on it."""
    name = options.bus
    if name in ELSEWHERE:
        raise UsageError(f"--bus {name} cannot be used here: {ELSEWHERE[name]}; use --bus uml")
    if name not in READY:
        raise UsageError(
            f"there is no bus {name}: the buses are {', '.join((*READY, *ELSEWHERE))}; use "
            "--bus uml"
        )
    if options.guest is not None and name != VFIO_USER:
        raise UsageError(f"--guest {options.guest} goes with --bus vfio-user, not {name}")
    if options.kernel is not None and options.guest is None:
        raise UsageError("--kernel goes with --bus vfio-user --guest qemu")
    if name == HOST:
        _check_no_guest(options)


def _check_no_guest(options: GuestOptions) -> None:
    given = {"--memory": options.memory is not None, "--kernel-arg": options.kernel_arguments}
    for option in (name for name, value in given.items() if value):
        raise UsageError(
            f"{option} goes with a guest that is booted, and behind --bus host there is this "
            "machine, which runs already: leave it out"
        )


def check_modules(modules: tuple[Path, ...]) -> None:
    """Raise `UsageError` unless all of these can be loaded."""
    for module in modules:
        if not module.is_file():
            raise UsageError(
                f"module {module} does not exist: softcard kernel modules DIR builds those in a "
                "folder"
            )


def ready_kernel() -> Kernel:
    """The embedded Linux's kernel, built with a progress bar when that has not been done."""
    from softcard.guest.kernel import ensure_kernel, find_kernel

    kernel = find_kernel()
    if kernel is not None:
        return kernel
    from softcard.cli.progress import progress_bar

    err().print("The embedded Linux is built now; this happens once, and takes some minutes.")
    with progress_bar() as progress:
        return ensure_kernel(progress)


@contextmanager
def opened(options: GuestOptions) -> Iterator[GuestBus]:
    """The bus that the user wants, without a guest."""
    if options.bus == UML:
        from softcard.bus.uml import UmlBus

        with UmlBus(completion_timeout=options.completion_timeout) as uml:
            yield uml
        return
    from softcard.guest.qemu import QemuBus

    with QemuBus(
        kernel=options.kernel,
        memory=int(options.memory or MEMORY),
        arguments=options.kernel_arguments,
        echo=print_log_line if options.log else None,
        completion_timeout=options.completion_timeout,
    ) as bus:
        yield bus


@contextmanager
def booted(bus: GuestBus, options: GuestOptions) -> Iterator[Guest]:
    """A guest behind `bus`, with its modules loaded."""
    with _guest(bus, options) as guest:
        for module in options.modules:
            load_module(guest, module)
        yield guest


def _guest(bus: GuestBus, options: GuestOptions) -> AbstractContextManager[Guest]:
    from softcard.bus.uml import UmlBus

    if not isinstance(bus, UmlBus):
        return bus.boot()
    from softcard.guest.uml import UmlGuest

    return UmlGuest(
        bus,
        kernel=ready_kernel(),
        memory=int(options.memory or MEMORY),
        arguments=options.kernel_arguments,
        echo=print_log_line if options.log else None,
    )


def load_module(guest: Guest, module: Path) -> None:
    """Load a module of this machine, also from a folder that the guest has one of its own of."""
    module = module.resolve()
    if not any(module.is_relative_to(folder) for folder in HIDDEN):
        guest.load_module(module)
        return
    with tempfile.TemporaryDirectory(prefix="softcard-", dir=VISIBLE) as folder:
        guest.load_module(Path(shutil.copy(module, folder)))


def print_log_line(line: str) -> None:
    """Show a line of the kernel's log."""
    err().print(line, style="dim", markup=False)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process by way of every `finally`."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    saved = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
