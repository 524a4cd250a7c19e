"""The kernel's own checks of the module's source: checkpatch, sparse, and the compiler's and
kernel-doc's further warnings.

    python -m tests.host.lint 6.12
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from softcard.guest.kernel import ensure_kernel
from softcard.guest.qemu.get import fetch_kernel
from softcard.guest.qemu.headers import headers

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "kernel"
# The module is built for many versions of Linux, and the oldest has no kzalloc_obj().
IGNORED = ("LINUX_VERSION_CODE", "CONSTANT_COMPARISON", "ALLOC_WITH_SIZEOF")
# Linux 7.2 wants a sparse that Debian does not have yet; the other checks are made there, too.
TOO_OLD = "sparse is not available or not up to date"
FINDING = re.compile(r":\d+: |: (warning|error)")


def checkpatch() -> Iterator[str]:
    """What checkpatch finds."""
    tree = ensure_kernel().build_tree
    assert tree is not None
    files = [path for path in sorted(SOURCE.rglob("*")) if path.suffix in (".c", ".h", ".S")]
    done = subprocess.run(
        [
            "perl", str(tree / "scripts/checkpatch.pl"), "--no-tree", "--strict", "--terse",
            "--show-types", f"--ignore={','.join(IGNORED)}", "--file", *map(str, files),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return findings(done.stdout + done.stderr)


def sparse(series: str) -> Iterator[str]:
    """What sparse, the compiler and kernel-doc find with the headers of a stock kernel."""
    kernel = fetch_kernel(series, lambda step, share: None)
    target = ROOT / "build/lint" / series
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(SOURCE, target)
    done = subprocess.run(
        [
            "make", "--silent", "-C", str(headers(kernel)), f"M={target}",
            "C=2", "CHECK=sparse", "W=1", "modules",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        yield done.stderr
    yield from (line.replace(str(target), f"{series}: kernel") for line in findings(done.stderr))


def findings(text: str) -> Iterator[str]:
    lines = text.splitlines()
    return (line for line in lines if FINDING.search(line) and TOO_OLD not in line)


def main(every_series: Iterable[str]) -> int:
    count = 0
    for found in (checkpatch(), *map(sparse, every_series)):
        for line in found:
            print(line)
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
