"""Programs of the system that do the work."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def there(program: str) -> bool:
    """Whether there is such a program, also for a user whose PATH has no sbin."""
    return shutil.which(program, path=PATH) is not None


def call(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program, in English; a missing one is one that fails."""
    try:
        return subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False, env=os.environ | {"PATH": PATH, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        return subprocess.CompletedProcess(arguments, 127, "", error.strerror or "it fails")


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a program that has failed has said last."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with status {done.returncode}"
