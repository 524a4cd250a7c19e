"""From source to a kernel in the cache."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from softcard.errors import UsageError
from softcard.guest.kernel import cache, config
from softcard.guest.kernel import kernel as kernels
from softcard.guest.kernel.errors import KernelError
from softcard.guest.kernel.kernel import Kernel
from softcard.guest.kernel.recipe import Recipe, recipe
from softcard.guest.kernel.source import Source, source_from
from softcard.guest.kernel.tools import check_tools
from softcard.guest.kernel.tree import keep_build_tree

Progress = Callable[[str, float], None]

# Source and objects; what stays in the end is a thirtieth of it.
ROOM = 2 << 30
# Until a build has told how many there are.
TYPICAL_OBJECTS = 2100
STEP = re.compile(r"\s+(CC|AS|LD|AR|HOSTCC|GEN|CHK|UPD|LINK|STRIP)\b")
# Shares of the time that a build takes, in the order of its steps.
FETCH, UNPACK, CONFIGURE, COMPILE = 0.03, 0.05, 0.02, 0.88
MAKE = ("make", "ARCH=um", "--no-print-directory")
# What a shell may have left from work on another kernel, or from the make that has called us.
FOREIGN = re.compile(
    r"(SUB)?ARCH|CROSS_COMPILE|(MAKE|MFLAGS|KBUILD|KCONFIG|INSTALL_|LOCALVERSION).*"
)


def build(
    progress: Progress | None, flavour: str, source_setting: str | None, *, force: bool
) -> Kernel:
    """Build a kernel into the cache; see `ensure_kernel`."""
    made_from = recipe(flavour)
    source = source_from(source_setting)
    folder = _usable_cache()
    target = folder / cache.kernel_digest(made_from, source)
    report = progress or (lambda step, done: None)
    with (
        _plain_disk_errors(folder),
        cache.lock(folder / f"{target.name}.lock", lambda sentence: report(sentence, 0.0)),
    ):
        found = None if force else kernels.load(target)
        if found is not None:
            return found
        return _Build(made_from, source, target, report, force=force).run()


def _usable_cache() -> Path:
    if platform.machine() != "x86_64":
        raise KernelError(
            f"the embedded kernel runs on x86-64 only, and this machine is {platform.machine()}: "
            "use another bus"
        )
    folder = cache.cache_folder()
    if re.search(r"[\s:]", str(folder)):
        raise UsageError(
            f"the kernel cannot be built in {folder}, whose name has a space or a colon: set "
            "XDG_CACHE_HOME to another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise KernelError(
            f"the kernel cannot be kept in {folder}: {error.strerror}; set XDG_CACHE_HOME to a "
            "folder that can be written"
        ) from None
    check_tools()
    return folder


@contextmanager
def _plain_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise KernelError(_disk_full(folder)) from None


def _disk_full(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    return (
        f"the disk with {folder} is too full to build the kernel: about {ROOM / 1e9:.1f} GB are "
        f"needed and {free / 1e9:.1f} GB are free; make room, or set XDG_CACHE_HOME to a folder "
        "elsewhere"
    )


class _Build:
    """One build: fetch, unpack, patch, configure, compile, keep what is needed."""

    def __init__(
        self, made_from: Recipe, source: Source, target: Path, report: Progress, *, force: bool
    ) -> None:
        self.recipe = made_from
        self.source = source
        self.target = target
        self.log = target.with_name(f"{target.name}.log")
        self.force = force
        self._report = report
        self._base = 0.0
        self._share = 0.0
        self._objects = 0

    def run(self) -> Kernel:
        """Do it all; nothing is left behind but the kernel, the source as it came, and the log."""
        folder = self.target.parent
        # The lock is ours: whoever left these has died.
        for left in folder.glob(f".{self.target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        if shutil.disk_usage(folder).free < ROOM:
            raise KernelError(_disk_full(folder))
        self.log.write_bytes(b"")
        with tempfile.TemporaryDirectory(prefix=f".{self.target.name}-", dir=folder) as work:
            tree, result = Path(work) / "linux", Path(work) / "result"
            started = time.monotonic()
            exact = self._unpack(tree)
            self._patch(tree)
            self._configure(tree)
            self._compile(tree)
            release = self._keep(tree, result)
            kernels.write_manifest(
                result,
                {
                    "release": release,
                    "source": exact,
                    "identity": self.source.identity,
                    "flavour": self.recipe.flavour,
                    "recipe": self.recipe.digest,
                    "objects": self._objects,
                    "seconds": round(time.monotonic() - started),
                },
            )
            if self.target.exists():
                # One rename cannot replace a folder; whoever runs the old kernel keeps it open.
                self.target.rename(Path(work) / "old")
            result.rename(self.target)
        self._step("done", 1.0)
        kernel = kernels.load(self.target)
        assert kernel is not None
        return kernel

    def _begin(self, step: str, share: float) -> None:
        self._base += self._share
        self._share = share
        self._step(step, 0.0)

    def _step(self, step: str, done: float) -> None:
        self._report(step, min(self._base + self._share * done, 1.0))

    def _unpack(self, tree: Path) -> str:
        sources = self.target.parent / "source"
        if self.force:
            shutil.rmtree(sources, ignore_errors=True)
        sources.mkdir(exist_ok=True)
        self._begin("getting Linux", FETCH)

        def progress(step: str, done: float) -> None:
            if step.startswith(("unpacking", "copying")):
                self._begin(step, UNPACK)
            else:
                self._step(step, done)

        return self.source.unpack(tree, sources, progress)

    def _patch(self, tree: Path) -> None:
        for patch in self.recipe.patches:
            status, tail = self._run(
                ["patch", "--strip=1", "--batch", "--forward", f"--input={patch}"], tree
            )
            if status:
                complaint = next((line for line in tail if "FAILED" in line), tail[-1])
                raise KernelError(
                    f"{patch.name} does not apply to this Linux ({complaint.strip()}); log in "
                    f"{self.log}"
                )

    def _configure(self, tree: Path) -> None:
        self._begin("configuring", CONFIGURE)
        wanted = config.merge(self.recipe.fragments)
        fragment = tree.parent / "wanted.config"
        fragment.write_text(config.text_of(wanted))
        self._make(tree, f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig")
        missing = config.dropped(wanted, config.parse((tree / ".config").read_text()))
        if missing:
            raise KernelError(
                "this Linux cannot be configured as wanted, Kconfig has dropped "
                f"{', '.join(missing)}"
            )

    def _compile(self, tree: Path) -> None:
        self._begin("compiling", COMPILE)
        expected = self._expected_objects()
        jobs = len(os.sched_getaffinity(0))

        def line(text: str) -> None:
            if STEP.match(text):
                self._objects += 1
                # An estimate may be too low: never claim to be done before it is true.
                self._step("compiling", min(self._objects / expected, 0.99))

        self._make(tree, f"--jobs={jobs}", "linux", "modules", line=line)

    def _expected_objects(self) -> int:
        known = [k.objects for k in cache.kept() if k.flavour == self.recipe.flavour]
        return max(known, default=TYPICAL_OBJECTS)

    def _keep(self, tree: Path, result: Path) -> str:
        self._begin("keeping what is needed", 0.0)
        result.mkdir()
        image = result / kernels.IMAGE
        status, tail = self._run(["strip", "-o", str(image), "linux"], tree)
        if status:
            raise KernelError(f"the kernel cannot be stripped: {tail[-1]}")
        shutil.copy(tree / ".config", result / kernels.CONFIG)
        release = (tree / "include" / "config" / "kernel.release").read_text().strip()
        if (tree / "modules.order").read_text().strip():
            self._make(tree, f"INSTALL_MOD_PATH={result / kernels.MODULES}", "modules_install")
        keep_build_tree(tree, result / kernels.BUILD)
        return release

    def _make(
        self, tree: Path, *arguments: str, line: Callable[[str], None] = lambda text: None
    ) -> None:
        stamp = int((tree / "Makefile").stat().st_mtime)
        status, tail = self._run(
            [
                *MAKE, "KBUILD_BUILD_USER=softcard", "KBUILD_BUILD_HOST=softcard",
                f"KBUILD_BUILD_TIMESTAMP=@{stamp}", "KBUILD_BUILD_VERSION=1", *arguments,
            ],
            tree, line,
        )  # fmt: skip
        if status == 0:
            return
        text = "\n".join(tail)
        if "No space left on device" in text or "Disk quota exceeded" in text:
            raise KernelError(_disk_full(self.target.parent))
        raise KernelError(
            f"the kernel cannot be built: {first_error(tail)}; the whole log is in {self.log}"
        )

    def _run(
        self, command: Sequence[str], folder: Path, line: Callable[[str], None] = lambda text: None
    ) -> tuple[int, list[str]]:
        """Run a command; its output goes to the log. Returns its status and the last lines."""
        with self.log.open("a") as log:
            return run_logged(command, folder, log.write, line)


def run_logged(
    command: Sequence[str],
    folder: Path,
    write: Callable[[str], object],
    line: Callable[[str], None] = lambda text: None,
) -> tuple[int, list[str]]:
    """Run a command of the build; each line of its output goes to `write` and to `line`.

    Returns:
        Its exit status, and the last lines of its output.
    """
    environment = {k: v for k, v in os.environ.items() if not FOREIGN.fullmatch(k)}
    environment["LC_ALL"] = "C"
    tail: deque[str] = deque(["it does not say why"], maxlen=200)
    with subprocess.Popen(
        command,
        cwd=folder, env=environment, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            for text in process.stdout:
                write(text)
                tail.append(text.rstrip("\n"))
                line(text)
        except BaseException:
            # Compilers that outlive us would write into a folder that is being removed.
            os.killpg(process.pid, 15)
            raise
    return process.returncode, list(tail)


def first_error(lines: Sequence[str]) -> str:
    """What the compiler, the linker or make has complained about first."""
    before = ""
    for text in lines:
        if re.search(r"error:|undefined reference|multiple definition", text, re.IGNORECASE):
            return text.strip()
        if "***" in text:
            # make only says that something has failed; what failed has spoken before.
            return (before or text).strip()
        before = text
    return lines[-1].strip()
