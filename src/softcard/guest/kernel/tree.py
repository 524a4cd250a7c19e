"""What stays of a built kernel tree: enough to build modules against it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Architectures of which headers are needed; ARCH=um borrows those of its host.
ARCHITECTURES = ("um", "x86")
TOP = (".config", "Makefile", "Module.symvers", "Kbuild")
NOT_KEPT = (".o", ".a", ".cmd", ".d", ".mod", ".order")


def keep_build_tree(tree: Path, kept: Path) -> None:
    """Move headers, scripts and symbol versions from `tree` to `kept`."""
    kept.mkdir()
    for name in TOP:
        shutil.copy(tree / name, kept / name)
    for name in ("include", "scripts"):
        (tree / name).rename(kept / name)
    shutil.rmtree(kept / "include" / "dt-bindings")
    for architecture in ARCHITECTURES:
        _keep_headers(tree, kept, Path("arch") / architecture)
    # Headers of the source include each other from here.
    _keep_headers(tree, kept, Path("tools") / "include")
    _drop_objects(kept)


def _keep_headers(tree: Path, kept: Path, part: Path) -> None:
    for folder, _, names in os.walk(tree / part):
        wanted = [name for name in names if name.endswith(".h") or name.startswith("Makefile")]
        if not wanted:
            continue
        target = kept / Path(folder).relative_to(tree)
        target.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            (Path(folder) / name).rename(target / name)


def _drop_objects(kept: Path) -> None:
    for folder, _, names in os.walk(kept):
        for name in names:
            if name.endswith(NOT_KEPT):
                (Path(folder) / name).unlink()
