"""The module's source: in the package, or beside it in a checkout."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import version as version_of
from pathlib import Path

from softcard.bus.host.module.errors import ModuleError
from softcard.errors import UsageError

NAME = "softcard"
OLDEST, NEWEST = (6, 1), (7, 2)
"""The kernels that it builds for, and all between."""

BUILT = ("*.o", "*.ko", "*.mod", "*.mod.c", ".*", "Module.symvers", "modules.order")


def version() -> str:
    """The version of this softcard, which is that of its module."""
    return version_of(NAME)


def source_folder() -> Path:
    """Where the source is.

    Raises:
        ModuleError: this installation lacks it.
    """
    inside = Path(__file__).parent / "kernel"
    folder = inside if inside.is_dir() else Path(__file__).parents[5] / "kernel"
    if not (folder / "Kbuild").exists():
        raise ModuleError(
            f"this installation of softcard lacks the kernel module's source, {folder}: install "
            "it anew"
        )
    return folder


def copy_source(target: Path) -> None:
    """Copy the source, without what was built in its folder, to a folder that does not exist."""
    shutil.copytree(source_folder(), target, ignore=shutil.ignore_patterns(*BUILT))


def check_kernel(release: str, machine: str) -> None:
    """Raise `UsageError` unless the module builds for this kernel."""
    if machine != "x86_64":
        raise UsageError(f"softcard's kernel module is for x86_64 alone, and this is {machine}")
    if not supported(release):
        oldest, newest = (".".join(map(str, each)) for each in (OLDEST, NEWEST))
        raise UsageError(
            f"softcard's kernel module is for Linux {oldest} to {newest}, and this is {release}: "
            "boot one of those, or use --bus uml"
        )


def supported(release: str) -> bool:
    """Whether the module builds for this kernel."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is not None and OLDEST <= (int(numbers[1]), int(numbers[2])) <= NEWEST
