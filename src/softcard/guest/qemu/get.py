"""Fetches QEMU and a stock kernel from Debian, into folders of our own."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from softcard.guest.apt import RELEASES, Apt, AptError, each_suite, first_suite_with
from softcard.guest.kernel import cache
from softcard.guest.qemu import program
from softcard.guest.qemu.accelerator import accelerator_for
from softcard.guest.qemu.errors import QemuError
from softcard.guest.qemu.kernel import (
    StockKernel,
    find_kernel,
    find_kernel_of,
    kernels_folder,
    series_folder,
    stock_kernel,
    unpacked,
    unpacked_file,
)
from softcard.guest.qemu.program import Qemu

KERNEL_PACKAGE = "linux-image-amd64"
PARTS = ("linux-base-", "linux-binary-", "linux-modules-")
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
    with _work("QEMU", progress) as work:
        qemu = program.find_qemu() or _get_qemu(work, progress)
        kernel = find_kernel() or _get_kernel(
            work, lambda step, share: progress(step, QEMU_SHARE + KERNEL_SHARE * share)
        )
        progress("trying KVM", 1.0)
        accelerator_for(qemu, kernel)
        return qemu, kernel


def fetch_kernel(series: str, progress: Progress) -> StockKernel:
    """The stock kernel of a series such as 6.1; fetched when that has not been done yet.

    Raises:
        QemuError: it cannot be had: no Debian has it, no network, ...
    """
    with _work(f"Linux {series}", progress) as work:
        return find_kernel_of(series) or _get_kernel_of(series, work, progress)


@contextmanager
def _work(what: str, progress: Progress) -> Iterator[Path]:
    """A folder to fetch into, while no other process does the same."""
    folder = program.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            cache.lock(
                folder / "get.lock", lambda sentence: progress(sentence, 0.0), f"fetching {what}"
            ),
            # In the same file system, so that what is complete can be moved into its place.
            tempfile.TemporaryDirectory(prefix="getting-", dir=folder) as work,
        ):
            yield Path(work)
    except (AptError, OSError) as error:
        raise QemuError(f"{what} cannot be had from Debian: {error}") from None


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
    apt, _ = first_suite_with(KERNEL_PACKAGE, work / "apt", _looking(progress), oldest=OLDEST)
    release = _fetch_kernel(apt, _package_of_the_kernel(apt), work / "linux", progress)
    return _put(work / "linux", kernels_folder() / release)


def _get_kernel_of(series: str, work: Path, progress: Progress) -> StockKernel:
    name = re.compile(rf"linux-image-{re.escape(series)}\.(\d+)[^-]*(?:-(\d+))?-amd64")
    for apt in each_suite(work / "apt", _looking(progress), first=RELEASES[0]):
        found = [
            match for package in apt.names("linux-image-") if (match := name.fullmatch(package))
        ]
        if found:
            newest = max(found, key=lambda match: [int(number or 0) for number in match.groups()])
            _fetch_kernel(apt, newest[0], work / "linux", progress)
            return _put(work / "linux", series_folder(series))
    raise AptError("none of its suites has one")


def _looking(progress: Progress) -> Callable[[str], None]:
    return lambda suite: progress(f"looking at Debian {suite}", 0.0)


def _fetch_kernel(apt: Apt, package: str, folder: Path, progress: Progress) -> str:
    """Fetch the kernel of a package and make it ready to be booted; returns its release."""
    step = f"fetching {package} of {apt.suite}"
    # Since 7.2 in three packages.
    parts = [name for name in apt.needs(package) if name.startswith(PARTS)]
    apt.fetch([package, *parts], folder, progress=lambda share: progress(step, share))
    image = _image(folder)
    release = image.name.removeprefix("vmlinuz-")
    progress("listing the kernel's modules", 1.0)
    merged = folder / "usr"
    # Before trixie they were in /lib, which is a link to /usr/lib on a machine.
    _depmod(merged if (merged / "lib/modules").is_dir() else folder, release)
    elf = unpacked(image)
    if elf is not None:
        unpacked_file(image).write_bytes(elf)
    return release


def _image(folder: Path) -> Path:
    """The kernel in an unpacked package, `boot/vmlinuz-RELEASE`."""
    # Since 7.2 it comes among its modules, and is copied when it is installed.
    for image in folder.glob("usr/lib/modules/*/vmlinuz"):
        boot = folder / "boot"
        boot.mkdir()
        image.rename(boot / f"vmlinuz-{image.parent.name}")
    (image,) = (folder / "boot").glob("vmlinuz-*")
    return image


def _put(folder: Path, target: Path) -> StockKernel:
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    (image,) = (target / "boot").glob("vmlinuz-*")
    return stock_kernel(image)


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
