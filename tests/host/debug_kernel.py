"""The kernel that finds what goes wrong in the module, by KASAN, lockdep and others; see
`debug.config` and `debug.patch`. It is built once, from the source of the embedded kernel, and
kept.

    python -m tests.host.debug_kernel
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from softcard.cli.progress import progress_bar
from softcard.guest.kernel import KernelError, Progress, config
from softcard.guest.kernel.build import STEP, first_error, run_logged
from softcard.guest.kernel.cache import DIGEST_LENGTH, cache_folder, lock
from softcard.guest.kernel.source import Source, source_from
from softcard.guest.kernel.tree import keep_build_tree
from softcard.guest.qemu import StockKernel

CONFIG = Path(__file__).with_name("debug.config")
PATCH = Path(__file__).with_name("debug.patch")
IMAGE, BUILD = "vmlinux", "build"
# What building a module runs besides the kernel's scripts.
OBJTOOL = Path("tools/objtool/objtool")
OBJECTS = 1500
MAKE = ("make", "ARCH=x86", "--no-print-directory")


def debug_kernel(progress: Progress) -> StockKernel:
    """The kernel; built when that has not been done yet.

    Raises:
        KernelError: it cannot be built; says why.
    """
    source = source_from(None)
    given = CONFIG.read_bytes() + PATCH.read_bytes() + source.identity.encode()
    digest = hashlib.sha256(given).hexdigest()
    folder = cache_folder("debug-kernel")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / digest[:DIGEST_LENGTH]
    with lock(folder / "build.lock", lambda sentence: progress(sentence, 0.0)):
        if not target.exists():
            with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as work:
                _Build(source, Path(work), target, progress).run()
    (modules,) = target.glob("lib/modules/*")
    image = target / IMAGE
    return StockKernel(image, image, modules.name, modules)


class _Build:
    """One build, in a folder that goes afterwards."""

    def __init__(self, source: Source, work: Path, target: Path, progress: Progress) -> None:
        self._source = source
        self._tree = work / "linux"
        self._result = work / "result"
        self._target = target
        self._log = target.with_suffix(".log")
        self._progress = progress
        self._objects = 0

    def run(self) -> None:
        sources = cache_folder() / "source"
        sources.mkdir(parents=True, exist_ok=True)
        self._log.write_bytes(b"")
        self._source.unpack(self._tree, sources, lambda step, share: self._progress(step, 0.0))
        self._run("patch", "--strip=1", "--batch", "--forward", f"--input={PATCH}")
        self._configure()
        jobs = len(os.sched_getaffinity(0))
        self._make(f"--jobs={jobs}", IMAGE, "modules", line=self._compiled)
        self._keep()
        self._result.rename(self._target)

    def _configure(self) -> None:
        self._make(f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig")
        given = config.parse((self._tree / ".config").read_text())
        missing = config.dropped(config.parse(CONFIG.read_text()), given)
        if missing:
            raise KernelError(f"Kconfig has dropped {', '.join(missing)} of {CONFIG.name}")

    def _compiled(self, text: str) -> None:
        if STEP.match(text):
            self._objects += 1
            self._progress("compiling the debug kernel", min(self._objects / OBJECTS, 0.99))

    def _keep(self) -> None:
        self._result.mkdir()
        self._make(f"INSTALL_MOD_PATH={self._result}", "modules_install")
        (self._tree / IMAGE).rename(self._result / IMAGE)
        build = self._result / BUILD
        keep_build_tree(self._tree, build)
        (build / OBJTOOL).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._tree / OBJTOOL, build / OBJTOOL)
        (modules,) = self._result.glob("lib/modules/*")
        link = modules / "build"
        link.unlink()
        # In the guest, modules are in another place.
        link.symlink_to(self._target / BUILD)

    def _make(self, *arguments: str, line: Callable[[str], None] = lambda text: None) -> None:
        self._run(*MAKE, *arguments, line=line)

    def _run(self, *command: str, line: Callable[[str], None] = lambda text: None) -> None:
        with self._log.open("a") as log:
            status, tail = run_logged(command, self._tree, log.write, line)
        if status:
            raise KernelError(
                f"the debug kernel cannot be built: {first_error(tail)}; the whole log is in "
                f"{self._log}"
            )


if __name__ == "__main__":
    with progress_bar() as bar:
        print(debug_kernel(bar).image)
