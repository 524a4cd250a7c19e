"""`softcard qemu`: QEMU and a stock kernel for it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator

import click

from softcard.cli.output import err, out
from softcard.cli.progress import progress_bar
from softcard.errors import UsageError
from softcard.guest.kernel.cache import size_of
from softcard.guest.qemu.kernel import StockKernel, find_kernel
from softcard.guest.qemu.program import Qemu, find_qemu, folder, need_qemu


@click.group()
def qemu() -> None:
    """Fetch QEMU and a stock kernel, for softcard run --bus vfio-user --guest qemu.

    Both come from Debian into a folder of your own; nothing that is installed changes.
    """


@qemu.command()
def get() -> None:
    """Fetch what is missing: QEMU, where the machine's own is too old, and a kernel."""
    from softcard.guest.qemu.get import get as get_both

    with progress_bar() as progress:
        program, kernel = get_both(progress)
    out().print(
        f"QEMU {program.version} and Linux {kernel.release} are in {folder()}"
        if program.folder
        else f"QEMU {program.version} is the machine's own, and Linux {kernel.release} is in "
        f"{folder()}",
        markup=False,
    )


@qemu.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Tell which QEMU and kernel are used; exit with 1 where one is missing."""
    kernel = find_kernel()
    if kernel is None or find_qemu() is None:
        err().print("something is missing: softcard qemu get", markup=False)
        ctx.exit(1)
    for name, value in describe(need_qemu(), kernel):
        out().print(f"{name:14}{value}", markup=False)


def describe(program: Qemu, kernel: StockKernel) -> Iterator[tuple[str, str]]:
    """What `status` shows."""
    from softcard.guest.qemu.accelerator import accelerator_for

    words = [f"{name}={value}" for name, value in program.environment.items()]
    yield "QEMU", program.version
    yield "command", shlex.join([*words, *program.command])
    yield "Linux", kernel.release
    yield "image", str(kernel.image)
    yield "modules", str(kernel.modules)
    yield "processor", accelerator_for(program, kernel).name
    yield "size on disk", f"{size_of(folder()) / 1e6:.0f} MB"


@qemu.command()
def clean() -> None:
    """Remove all that softcard qemu get has fetched."""
    where = folder()
    freed = size_of(where) if where.exists() else 0
    try:
        shutil.rmtree(where)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{where} cannot be removed: {error.strerror}") from None
    out().print(f"{freed / 1e6:.0f} MB freed in {where}", markup=False)
