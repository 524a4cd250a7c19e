"""Headers of stock kernels, and modules built with them, for a guest of another release than this
machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from softcard.guest.apt import RELEASES, AptError, first_suite_with
from softcard.guest.kernel import cache
from softcard.guest.qemu.errors import QemuError
from softcard.guest.qemu.kernel import StockKernel
from softcard.guest.qemu.program import folder, program_folder

# A compiler that is older than the kernel's does not know it; it only saves space.
UNKNOWN_OPTION = "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT"
# Programs that start another one, which they find by their own name.
CHOOSERS = {"tools/objtool/objtool": "real-x86", "scripts/mod/modpost": "real-lsb-64"}
ELF = b"\x7fELF"


def headers(kernel: StockKernel) -> Path:
    """The folder to build modules for a kernel with: what its modules name, or Debian's, which is
    fetched when that has not been done yet.

    Raises:
        QemuError: it cannot be had.
    """
    own = kernel.modules / "build" if kernel.modules else None
    if own is not None and own.exists():
        return own
    target = folder() / "headers" / kernel.release
    with cache.lock(folder() / "headers.lock", lambda sentence: None, "fetching headers"):
        if not target.exists():
            with tempfile.TemporaryDirectory(prefix="getting-", dir=folder()) as work:
                try:
                    _fetch(kernel.release, Path(work), target)
                except (AptError, OSError) as error:
                    raise QemuError(
                        f"headers of Linux {kernel.release} cannot be had from Debian: {error}"
                    ) from None
    return target / "usr/src" / f"linux-headers-{kernel.release}"


def build_stock_module(kernel: StockKernel, source: Path, target: Path) -> Path:
    """Build the one module in `source`, in a copy of it below `target`.

    Raises:
        QemuError: the compiler refuses it; with what it said.
    """
    shutil.copytree(source, target, dirs_exist_ok=True)
    done = subprocess.run(
        ["make", "-s", "-C", headers(kernel), f"M={target}", "modules"],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise QemuError(f"{source} does not build for {kernel.release}:\n{done.stderr}")
    (module,) = target.glob("*.ko")
    return module


def _fetch(release: str, work: Path, target: Path) -> None:
    apt, _ = first_suite_with(f"linux-headers-{release}", work / "apt", first=RELEASES[0])
    found = [f"linux-headers-{release}"]
    found += [
        name
        for name in apt.needs(found[0])
        if name.startswith(("linux-headers-", "linux-kbuild-", "linux-compiler-"))
    ]
    unpacked = work / "headers"
    apt.fetch(found, unpacked)
    own = unpacked / "usr/src" / f"linux-headers-{release}"
    _edit(own / "Makefile", "/usr/src/", f"{target}/usr/src/")
    for compiler in ("gcc-12", "gcc-13", "gcc-14", "gcc-15"):
        if shutil.which(compiler) is None:
            _edit(own / ".kernelvariables", compiler, "gcc")
    for name in ("config/auto.conf", "generated/autoconf.h"):
        path = own / "include" / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if UNKNOWN_OPTION not in line))
    # Without it, no type information is made, for which another program would be needed.
    (own / "vmlinux").unlink(missing_ok=True)
    (kbuild,) = (unpacked / "usr/lib").glob("linux-kbuild-*")
    chosen = [kbuild / f"{name}.{suffix}" for name, suffix in CHOOSERS.items()]
    if not all(_runs(program) for program in chosen if program.exists()):
        _wrap(kbuild, target / "usr/lib" / kbuild.name)
    target.parent.mkdir(exist_ok=True)
    unpacked.rename(target)


def _edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def _runs(program: Path) -> bool:
    # Without arguments, both only complain.
    done = subprocess.run([program], capture_output=True, check=False)
    return b"GLIBC" not in done.stderr


def _wrap(kbuild: Path, place: Path) -> None:
    """Have the programs use the C library that came with QEMU: this machine's is older."""
    library = next(program_folder().rglob("libc.so.6")).parent
    loader = library / "ld-linux-x86-64.so.2"
    paths = ":".join(map(str, (library, "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu")))
    for program in _programs(kbuild):
        real = program.with_name(f"{program.name}.real")
        program.rename(real)
        its = place / real.relative_to(kbuild)
        _script(program, f"{loader} --library-path {paths} {its}")
    for name, chosen in CHOOSERS.items():
        if (kbuild / f"{name}.{chosen}").exists():
            _script(kbuild / name, f"{place / name}.{chosen}")


def _programs(kbuild: Path) -> Iterable[Path]:
    for path in list(kbuild.rglob("*")):
        if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK):
            with path.open("rb") as file:
                if file.read(4) == ELF:
                    yield path


def _script(path: Path, command: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)
