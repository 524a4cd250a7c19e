"""What building the kernel needs of the machine, looked at before anything is begun."""

from __future__ import annotations

import shutil
import subprocess

from softcard.guest.kernel.errors import KernelError

PACKAGES = {
    "gcc": "gcc",
    "ld": "binutils",
    "strip": "binutils",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "tar": "tar",
    "patch": "patch",
}
"""Programs, and the Debian packages that have them."""

HEADERS = "libc6-dev"


def missing_packages() -> list[str]:
    """The Debian packages that are to be installed before a kernel can be built."""
    missing = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if "gcc" not in missing and not _has_headers():
        missing.add(HEADERS)
    return sorted(missing)


def check_tools() -> None:
    """Raise `KernelError` where something is missing, with the command that mends it."""
    packages = missing_packages()
    if not packages:
        return
    programs = [name for name in PACKAGES if shutil.which(name) is None]
    what = ", ".join(programs) or "the C library's headers"
    raise KernelError(
        f"building the kernel needs what this machine lacks ({what}): "
        f"sudo apt-get install {' '.join(packages)}"
    )


def _has_headers() -> bool:
    done = subprocess.run(
        ["gcc", "-E", "-x", "c", "-", "-o", "/dev/null"],
        input=b"#include <stdlib.h>\n#include <linux/types.h>\n",
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
