"""C programs that tests run in the guest."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.host.conftest import ROOT

BUILT = ROOT / "build" / "programs"
FLAGS = ("-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread")


def compiled(source: Path) -> str:
    """Compile a program; where the guest sees it, whose root is this machine's. /tmp is its own."""
    BUILT.mkdir(parents=True, exist_ok=True)
    target = BUILT / source.stem
    subprocess.run(
        ["cc", *FLAGS, f"-I{ROOT / 'kernel/include/uapi'}", "-o", target, source], check=True
    )
    return str(target)
