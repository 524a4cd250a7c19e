"""Fetches QEMU and a stock kernel from Debian, into folders of our own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from softcard.guest.apt import Apt, AptError, first_suite_with
from softcard.guest.kernel import cache
from softcard.guest.qemu import program
from softcard.guest.qemu.accelerator import accelerator_for
from softcard.guest.qemu.errors import QemuError
from softcard.guest.qemu.kernel import (
    StockKernel,
    find_kernel,
    kernels_folder,
    stock_kernel,
    unpacked,
    unpacked_file,
)
from softcard.guest.qemu.program import Qemu

KERNEL_PACKAGE = "linux-image-amd64"
# The first release whose backports have a QEMU that is new enough; older kernels are of no use
# to anybody who has this one.
OLDEST = "trixie"
# Shares of the time that it takes.
QEMU_SHARE, KERNEL_SHARE = 0.45, 0.35

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of all the work that is done, 0 to 1."""


def get(progress: Progress) -> tuple[Qemu, StockKernel]:
    """QEMU and a stock kernel; what is missing of both is fetched.

    Raises:
        QemuError: it cannot be had: no network, this is no Debian, the disk is full, ...
    """
    folder = program.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            cache.lock(
                folder / "get.lock", lambda sentence: progress(sentence, 0.0), "fetching QEMU"
            ),
            # In the same file system, so that what is complete can be moved into its place.
            tempfile.TemporaryDirectory(prefix="getting-", dir=folder) as work,
        ):
            qemu = program.find_qemu() or _get_qemu(Path(work), progress)
            kernel = find_kernel() or _get_kernel(
                Path(work), lambda step, share: progress(step, QEMU_SHARE + share)
            )
            progress("trying KVM", 1.0)
            accelerator_for(qemu, kernel)
            return qemu, kernel
    except (AptError, OSError) as error:
        raise QemuError(f"QEMU cannot be had from Debian: {error}") from None


def _get_qemu(work: Path, progress: Progress) -> Qemu:
    apt, version = first_suite_with(
        program.PACKAGE, work / "apt", lambda suite: progress(f"looking at Debian {suite}", 0.0),
        oldest=OLDEST, good=program.is_new_enough,
    )  # fmt: skip
    step = f"fetching QEMU {version} of {apt.suite}"
    apt.fetch(
        [program.PACKAGE], work / "program", dependencies=True,
        progress=lambda share: progress(step, QEMU_SHARE * share),
    )  # fmt: skip
    target = program.program_folder()
    shutil.rmtree(target, ignore_errors=True)
    (work / "program").rename(target)
    qemu = program.private_qemu(target)
    if qemu is None:
        raise QemuError(f"QEMU {version} of Debian {apt.suite} does not start here; see {target}")
    return qemu


def _get_kernel(work: Path, progress: Progress) -> StockKernel:
    apt, _ = first_suite_with(
        KERNEL_PACKAGE, work / "apt", lambda suite: progress(f"looking at Debian {suite}", 0.0),
        oldest=OLDEST,
    )  # fmt: skip
    package = _package_of_the_kernel(apt)
    step = f"fetching {package} of {apt.suite}"
    folder = work / "linux"
    apt.fetch([package], folder, progress=lambda share: progress(step, KERNEL_SHARE * share))
    (image,) = (folder / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    progress("listing the kernel's modules", KERNEL_SHARE)
    _depmod(folder / "usr", release)
    elf = unpacked(image)
    if elf is not None:
        unpacked_file(image).write_bytes(elf)
    target = kernels_folder() / release
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    return stock_kernel(target / "boot" / image.name)


def _package_of_the_kernel(apt: Apt) -> str:
    for package in apt.needs(KERNEL_PACKAGE):
        if package.startswith("linux-image-"):
            return package
    raise QemuError(f"{KERNEL_PACKAGE} of Debian {apt.suite} names no kernel")


def _depmod(folder: Path, release: str) -> None:
    program = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise QemuError("depmod is missing, without which modules cannot be found: install kmod")
    done = subprocess.run(
        [program, "-b", folder, release], capture_output=True, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise QemuError(f"the kernel's modules cannot be listed: {done.stderr.strip()}")
