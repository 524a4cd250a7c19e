"""Out-of-tree modules for the embedded kernel."""

from __future__ import annotations

import os
import re
from pathlib import Path

from softcard.errors import UsageError
from softcard.guest.kernel.build import MAKE, first_error, run_logged
from softcard.guest.kernel.errors import KernelError
from softcard.guest.kernel.kernel import Kernel
from softcard.guest.kernel.source import SETTING
from softcard.guest.kernel.tools import check_tools


def build(kernel: Kernel, directory: Path) -> list[Path]:
    """Build the modules of `directory`; see `softcard.guest.kernel.build_module`."""
    directory = directory.absolute()
    _check_folder(directory)
    tree = kernel.build_tree
    if tree is None:
        raise KernelError(
            f"the kernel in {kernel.folder} came without the headers that modules need: set "
            f"{SETTING}=debian, and one that you have built yourself is used instead"
        )
    check_tools()
    output: list[str] = []
    status, tail = run_logged(
        [*MAKE, "-C", str(tree), f"M={directory}", f"--jobs={len(os.sched_getaffinity(0))}",
         "modules"],
        directory, output.append,
    )  # fmt: skip
    if status:
        log = directory / "build.log"
        log.write_text("".join(output))
        raise KernelError(
            f"the modules in {directory} cannot be built: {first_error(tail)}; the whole log is "
            f"in {log}"
        )
    order = directory / "modules.order"
    return [_module(directory, line) for line in order.read_text().split()]


def _check_folder(directory: Path) -> None:
    if not directory.is_dir():
        raise UsageError(f"{directory} is no folder: give the one with the module's Kbuild file")
    if re.search(r"[\s:]", str(directory)):
        raise UsageError(
            f"modules cannot be built in {directory}, whose name has a space or a colon"
        )
    for name in ("Kbuild", "Makefile"):
        path = directory / name
        if path.is_file():
            if re.search(r"^\s*obj-(m|\$)", path.read_text(errors="replace"), re.M):
                return
            raise UsageError(f"{path} names no module: add a line such as obj-m := mine.o")
    raise UsageError(
        f"{directory} has neither Kbuild nor Makefile: add a Kbuild with a line such as "
        "obj-m := mine.o"
    )


def _module(directory: Path, line: str) -> Path:
    """The module of a line of modules.order, which is relative to the folder or absolute."""
    return (directory / line).with_suffix(".ko")
