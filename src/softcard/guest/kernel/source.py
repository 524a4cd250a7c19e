"""Where Linux's source comes from: one setting with three kinds of values.

- `debian`, or `debian:linux-source-7.2`: the package of the oldest suite that has it;
- the address of a tarball and its checksum: `https://.../linux-7.2.12.tar.xz#sha256=...`;
- the path of a tarball or of an unpacked tree.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

from softcard.errors import UsageError
from softcard.guest.kernel.errors import KernelError

SETTING = "SOFTCARD_KERNEL_SOURCE"
PACKAGE = "linux-source-7.2"
CHUNK = 1 << 20
DOWNLOAD_TIMEOUT = 60.0

# A third of the tree, none of which is read to configure and build for ARCH=um. What Kconfig reads
# of other architectures has to stay.
NOT_NEEDED = (
    "*/Documentation/*/*",
    "*/arch/[!ux]*/*.[chS]",
    "*/arch/[!ux]*/*.dts*",
    "*/arch/xtensa/*.[chS]",
    "*/drivers/gpu/drm/amd/include/asic_reg/*",
    "*/tools/testing/*",
    "*/tools/perf/*",
    "*/LICENSES/*",
)

Progress = Callable[[str, float], None]


class Source(ABC):
    """Linux as it comes, before our patches.

    Attributes:
        identity: what was asked for; known without a look at the network. A kernel is built anew
            when it changes.
    """

    identity: str

    @abstractmethod
    def unpack(self, folder: Path, work: Path, progress: Progress) -> str:
        """Put the tree into `folder`, which does not exist yet.

        Args:
            folder: its parent is there.
            work: where files may be kept for the next time.
            progress: called with what is being done and the share of it that is done.

        Returns:
            Exactly which source it is, in words.

        Raises:
            KernelError: it cannot be had.
        """


class DebianPackage(Source):
    """A source package of Debian, wherever the machine's mirror has it."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.identity = f"debian {package}"

    def unpack(self, folder: Path, work: Path, progress: Progress) -> str:
        """See `Source`; an archive that was fetched before is used again."""
        kept = self._kept(work)
        if kept is None:
            kept = self._fetch(work, progress)
        _unpack_tarball(kept, folder, progress)
        version = kept.name.removeprefix(f"{self.package}_").removesuffix(".tar.xz")
        return f"Debian package {self.package}, version {version}"

    def _kept(self, work: Path) -> Path | None:
        return max(work.glob(f"{self.package}_*.tar.xz"), key=_changed, default=None)

    def _fetch(self, work: Path, progress: Progress) -> Path:
        from softcard.guest.apt import AptError, first_suite_with

        state = work / "apt"
        shutil.rmtree(state, ignore_errors=True)
        try:
            apt, version = first_suite_with(
                self.package, state, lambda suite: progress(f"looking at Debian {suite}", 0.0)
            )
            step = f"fetching {self.package} {version} of {apt.suite}"
            progress(step, 0.0)
            folder = state / "unpacked"
            apt.fetch([self.package], folder, progress=lambda share: progress(step, share))
            found = folder / "usr" / "src" / f"{self.package}.tar.xz"
            kept = work / f"{self.package}_{version.replace('/', '_')}.tar.xz"
            found.replace(kept)
        except (AptError, OSError) as error:
            raise KernelError(
                f"Linux's source cannot be had from Debian: {error} "
                f"(or set {SETTING} to another source)"
            ) from None
        finally:
            shutil.rmtree(state, ignore_errors=True)
        return kept


class Download(Source):
    """A tarball at an address, with the checksum that it must have."""

    def __init__(self, address: str, sha256: str) -> None:
        self.address = address
        self.sha256 = sha256.lower()
        self.identity = f"sha256 {self.sha256}"

    def unpack(self, folder: Path, work: Path, progress: Progress) -> str:
        """See `Source`; an archive that was fetched before is used again."""
        kept = work / f"{self.sha256}.tar"
        if not kept.exists():
            self._fetch(kept, progress)
        _unpack_tarball(kept, folder, progress)
        return f"{self.address}, SHA-256 {self.sha256}"

    def _fetch(self, kept: Path, progress: Progress) -> None:
        import urllib.error
        import urllib.request

        step = f"fetching {self.address.rsplit('/', 1)[-1]}"
        progress(step, 0.0)
        partial = kept.with_suffix(".partial")
        try:
            with (
                urllib.request.urlopen(self.address, timeout=DOWNLOAD_TIMEOUT) as answer,
                partial.open("wb") as file,
            ):
                total = int(answer.headers.get("Content-Length") or 0)
                digest = self._copy(answer, file, lambda n: progress(step, n / max(total, n, 1)))
        except (OSError, ValueError) as error:
            partial.unlink(missing_ok=True)
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise KernelError(f"{self.address} cannot be fetched: {why}") from None
        if digest != self.sha256:
            partial.unlink()
            raise KernelError(
                f"{self.address} is not what was expected: its SHA-256 is {digest}, "
                f"not {self.sha256}"
            )
        partial.replace(kept)

    @staticmethod
    def _copy(answer: BinaryIO, file: BinaryIO, come: Callable[[int], None]) -> str:
        digest = hashlib.sha256()
        count = 0
        while data := answer.read(CHUNK):
            file.write(data)
            digest.update(data)
            count += len(data)
            come(count)
        return digest.hexdigest()


class LocalTarball(Source):
    """A tarball on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        self.identity = f"file {path} {status.st_size} {status.st_mtime_ns}"

    def unpack(self, folder: Path, work: Path, progress: Progress) -> str:
        """See `Source`."""
        _unpack_tarball(self.path, folder, progress)
        return f"file {self.path}"


class LocalTree(Source):
    """An unpacked tree on this machine, which is copied and never changed.

    Its identity is that of its top-level Makefile: after a change elsewhere, build by force.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        makefile = path / "Makefile"
        if not makefile.is_file() or not (path / "arch" / "um").is_dir():
            raise UsageError(f"{path} is no Linux source tree: it has no Makefile or no arch/um")
        self.identity = f"tree {path} {makefile.stat().st_mtime_ns}"

    def unpack(self, folder: Path, work: Path, progress: Progress) -> str:
        """See `Source`."""
        progress(f"copying {self.path}", 0.0)
        excludes = [f"--exclude={pattern}" for pattern in (*NOT_NEEDED, "*.o", "*/.git")]
        folder.mkdir()
        with subprocess.Popen(
            ["tar", "--create", *excludes, "--directory", self.path, "."], stdout=subprocess.PIPE
        ) as reader:
            writer = _run_tar(["--extract", "--directory", str(folder)], stdin=reader.stdout)
        if writer.returncode or reader.returncode:
            raise KernelError(f"{self.path} cannot be copied: {_last_line(writer.stderr)}")
        # Left from a build for another configuration, these would be taken for ours.
        for name in (".config", "include/config", "include/generated", "arch/um/include/generated"):
            left = folder / name
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
        return f"tree {self.path}"


def source_from(setting: str | None) -> Source:
    """The source that a setting names; the one of the environment when it is None.

    Raises:
        UsageError: it names none.
    """
    setting = setting or os.environ.get(SETTING) or "debian"
    kind, _, package = setting.partition(":")
    if kind == "debian":
        if package and not re.fullmatch(r"linux-source-[\w.+-]+", package):
            raise UsageError(f"kernel source {setting!r}: {package!r} is no kernel source package")
        return DebianPackage(package or PACKAGE)
    if re.match(r"(https?|ftp|file)://", setting):
        address, _, checksum = setting.partition("#sha256=")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", checksum):
            raise UsageError(
                f"kernel source {address} has no checksum: add #sha256= and its 64 digits"
            )
        return Download(address, checksum)
    path = Path(setting).expanduser().absolute()
    if path.is_dir():
        return LocalTree(path)
    if path.is_file():
        return LocalTarball(path)
    raise UsageError(
        f"kernel source {setting!r} is neither debian nor an address nor a file or folder that "
        "exists"
    )


def _unpack_tarball(tarball: Path, folder: Path, progress: Progress) -> None:
    progress(f"unpacking {tarball.name}", 0.0)
    excludes = [f"--exclude={pattern}" for pattern in NOT_NEEDED]
    folder.mkdir()
    done = _run_tar(
        ["--extract", "--file", str(tarball), "--strip-components=1", *excludes,
         "--no-same-owner", "--directory", str(folder)]
    )  # fmt: skip
    if done.returncode:
        raise KernelError(f"{tarball} cannot be unpacked: {_last_line(done.stderr)}")
    if not (folder / "arch" / "um").is_dir():
        raise KernelError(f"{tarball} holds no Linux source: there is no arch/um in it")


def _run_tar(
    arguments: list[str], stdin: int | IO[bytes] | None = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["tar", *arguments],
        stdin=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        check=False,
    )


def _last_line(text: str) -> str:
    """The complaint that matters in what tar says: not the one that it has given up."""
    lines = [line for line in text.splitlines() if "Exiting with failure" not in line]
    return lines[-1].removeprefix("tar: ") if lines else "tar does not say why"


def _changed(path: Path) -> float:
    return path.stat().st_mtime
