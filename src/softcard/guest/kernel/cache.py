"""Where kernels are kept: one folder for each digest, found without looking at anything else."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from softcard.errors import UsageError
from softcard.guest.kernel.errors import KernelError
from softcard.guest.kernel.kernel import MANIFEST, Kernel, load
from softcard.guest.kernel.recipe import Recipe, recipe
from softcard.guest.kernel.source import SETTING, Source, source_from

DIGEST_LENGTH = 16


def cache_folder(what: str = "kernel") -> Path:
    """The folder for kernels, or for something else that is kept, per user.

    Raises:
        UsageError: there is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "softcard" / what
    try:
        return Path.home() / ".cache" / "softcard" / what
    except RuntimeError:
        raise UsageError(
            f"there is no home folder to keep the {what} in: set HOME or XDG_CACHE_HOME"
        ) from None


def prebuilt_folder() -> Path:
    """Where a wheel carries a kernel, if it does."""
    return Path(__file__).parent / "prebuilt"


def kernel_digest(made_from: Recipe, source: Source) -> str:
    """Names the kernel that this recipe and this source give."""
    text = f"{made_from.digest} {source.identity}"
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def find(flavour: str, source_setting: str | None) -> Kernel | None:
    """The kernel that is there already; see `find_kernel`."""
    made_from = recipe(flavour)
    if source_setting is None and SETTING not in os.environ:
        prebuilt = find_prebuilt(made_from)
        if prebuilt is not None:
            return prebuilt
    return load(cache_folder() / kernel_digest(made_from, source_from(source_setting)))


def find_prebuilt(made_from: Recipe) -> Kernel | None:
    """The kernel of the wheel, if its recipe is the present one."""
    kernel = load(prebuilt_folder())
    if kernel is None or kernel.recipe != made_from.digest:
        return None
    # Some installers lose the mode; in a place that is read-only it cannot be mended.
    if not os.access(kernel.image, os.X_OK):
        try:
            kernel.image.chmod(0o755)
        except OSError:
            return None
    return kernel


@contextlib.contextmanager
def lock(
    path: Path, waiting: Callable[[str], None], doing: str = "building this kernel"
) -> Iterator[None]:
    """Keep other processes from doing the same; `waiting` is told if one already does."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            waiting(f"process {file.read().strip() or '?'} is {doing}, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def kept() -> list[Kernel]:
    """Every kernel in the cache."""
    found = (load(path.parent) for path in sorted(cache_folder().glob(f"*/{MANIFEST}")))
    return [kernel for kernel in found if kernel is not None]


def clean(keep: Collection[Path] = ()) -> int:
    """Remove kernels, sources and what broken-off builds have left, except the folders in `keep`.

    Returns:
        How many bytes that has freed.

    Raises:
        KernelError: a kernel is being built.
    """
    kept_names = {name for path in keep for name in (path.name, f"{path.name}.lock")}
    folder = cache_folder()
    for path in folder.glob("*.lock"):
        with lock(path, _refuse):
            pass
    freed = 0
    for path in sorted(folder.glob("*")):
        if path.name in kept_names:
            continue
        freed += size_of(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return freed


def _refuse(sentence: str) -> None:
    builder = sentence.partition(",")[0]
    raise KernelError(f"nothing is removed: {builder}; wait for it or end it")


def size_of(path: Path) -> int:
    """Bytes on disk of a file or of everything in a folder."""
    total = path.lstat().st_blocks * 512
    if path.is_dir() and not path.is_symlink():
        for folder, _, names in os.walk(path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(folder) / name).lstat().st_blocks * 512
    return total
