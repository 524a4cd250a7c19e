"""What the programs share that run in the guest, with it as their own machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

DEBUGFS = Path("/sys/kernel/debug")
# Linux lets go of a disk that goes while it is looked at for the first time after 60 s.
TIMEOUT = 100.0


def sh(script: str) -> str:
    """Run a shell script; its output."""
    return subprocess.run(
        ["/bin/sh", "-ec", script], check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def load(module: str) -> None:
    """Load a module file."""
    sh(f"insmod {module}")


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + TIMEOUT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def wait_for(path: str, *, exists: bool = True) -> None:
    """Wait until a file exists, or does no longer."""
    wait_until(lambda: Path(path).exists() == exists)


def mount_debugfs() -> None:
    """Once is enough."""
    if not (DEBUGFS / "pci").exists() and not any(DEBUGFS.iterdir()):
        sh("mount -t debugfs none /sys/kernel/debug")
