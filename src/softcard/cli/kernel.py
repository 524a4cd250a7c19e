"""`softcard kernel`: the embedded Linux, and modules for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from softcard.cli.output import err, out
from softcard.cli.progress import progress_bar
from softcard.guest.kernel import FLAVOURS, Kernel, build_module, ensure_kernel, find_kernel

LINES_EVERY = 0.1

flavour_option = click.option(
    "--flavour",
    type=click.Choice(list(FLAVOURS)),
    default="default",
    help="debug finds faults in drivers (lockdep, KASAN, kmemleak) and is slower.",
)
source_option = click.option(
    "--source",
    metavar="SOURCE",
    help="Where Linux comes from: debian, URL#sha256=DIGITS, or the path of a tarball or tree; "
    "$SOFTCARD_KERNEL_SOURCE otherwise.",
)


@click.group()
def kernel() -> None:
    """Build the embedded Linux, and modules for it.

    It is built by itself when it is first needed, and again when its configuration, its patches
    or its source have changed.
    """


@kernel.command()
@source_option
@flavour_option
@click.option("--force", is_flag=True, help="Build it even if it exists; fetch its source anew.")
def build(source: str | None, flavour: str, force: bool) -> None:
    """Build the kernel now."""
    with reported_progress() as progress:
        built = ensure_kernel(progress, flavour=flavour, source=source, force=force)
    out().print(f"Linux {built.release} is in {built.folder}", markup=False)


@kernel.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@flavour_option
def modules(directory: Path, flavour: str) -> None:
    """Build the out-of-tree modules in DIR, which has a Kbuild file or a Makefile with obj-m.

    \b
    softcard run card.py -- insmod DIR/mine.ko
    """
    with reported_progress() as progress:
        built = ensure_kernel(progress, flavour=flavour)
    for module in build_module(built, directory):
        out().print(str(module), markup=False)


@kernel.command()
@source_option
@flavour_option
@click.option("--folder", is_flag=True, help="Print nothing but the folder, for scripts.")
@click.pass_context
def status(ctx: click.Context, source: str | None, flavour: str, folder: bool) -> None:
    """Tell where the kernel is and what it was built from; exit with 1 where there is none."""
    found = find_kernel(flavour, source)
    if found is None:
        err().print("no kernel has been built yet: softcard kernel build", markup=False)
        ctx.exit(1)
    if folder:
        out().print(str(found.folder), markup=False)
        return
    for name, value in describe(found):
        out().print(f"{name:14}{value}", markup=False)


def describe(found: Kernel) -> Iterator[tuple[str, str]]:
    """What `status` shows of a kernel."""
    from softcard.guest.kernel.cache import size_of

    yield "Linux", found.release
    yield "flavour", found.flavour
    yield "folder", str(found.folder)
    yield "image", f"{found.image.stat().st_size / 1e6:.1f} MB"
    yield "size on disk", f"{size_of(found.folder) / 1e6:.0f} MB"
    yield "source", found.source
    yield "recipe", f"{found.recipe[:16]} (configuration and patches)"
    yield "for modules", "has headers" if found.build_tree else "came without headers"


@kernel.command()
@click.option("--all", "everything", is_flag=True, help="The kernel in use as well.")
def clean(everything: bool) -> None:
    """Remove kernels that are out of date, their sources, and what broken-off builds have left."""
    from softcard.guest.kernel import cache

    keep = []
    if not everything:
        found = (find_kernel(flavour) for flavour in FLAVOURS)
        keep = [each.folder for each in found if each is not None]
    freed = cache.clean(keep)
    out().print(f"{freed / 1e6:.0f} MB freed in {cache.cache_folder()}", markup=False)


@contextmanager
def reported_progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal; elsewhere a line for each step and each tenth of the work."""
    if err().is_terminal:
        with progress_bar() as update:
            yield update
        return
    said: list[tuple[str, int]] = []

    def line(doing: str, share: float) -> None:
        mark = doing, int(share / LINES_EVERY)
        if mark not in said:
            said.append(mark)
            err().print(f"{share:4.0%} {doing}", markup=False)

    yield line
