"""DKMS: builds modules for each kernel that is installed, now and later, and signs them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from softcard.bus.host.module import source
from softcard.bus.host.module.errors import ModuleError
from softcard.bus.host.module.programs import call, last_line

SOURCES = Path("/usr/src")
TREE = Path("/var/lib/dkms")
KEYS = (TREE / "mok.pub", Path("/var/lib/shim-signed/mok/MOK.der"))
"""The key that DKMS signs with, for a machine with Secure Boot to be told: Debian's, Ubuntu's."""

STATUS = re.compile(r"^softcard(?:/|, )(?P<version>[^,:]+)(?:, (?P<kernel>[^,]+), [^:]+)?: (\w+)")
LOG_LINES = 20
CONFIGURATION = """\
PACKAGE_NAME="softcard"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="softcard"
DEST_MODULE_LOCATION[0]="/updates/dkms"
BUILD_EXCLUSIVE_ARCH="x86_64"
AUTOINSTALL="yes"
"""


@dataclass(frozen=True)
class Build:
    """A version of the module that DKMS knows.

    Attributes:
        version: softcard's.
        kernel: the release that it is built for; empty where it has only been added.
        state: added, built or installed.
    """

    version: str
    kernel: str
    state: str


def key() -> Path | None:
    """The public part of the key that DKMS signs with; None where it has made none yet."""
    return next((path for path in KEYS if path.exists()), None)


def folder(version: str) -> Path:
    """Where DKMS looks for the source of a version."""
    return SOURCES / f"{source.NAME}-{version}"


def builds() -> list[Build]:
    """What DKMS has of the module."""
    lines = call(["dkms", "status", "-m", source.NAME]).stdout.splitlines()
    found = (STATUS.match(line) for line in lines)
    return [Build(m["version"], m["kernel"] or "", m[3]) for m in found if m is not None]


def install(version: str, release: str) -> None:
    """Put the source in its place, and build and install the module for one kernel.

    Raises:
        ModuleError: it does not build; with the end of what the compiler has said.
    """
    place = folder(version)
    source.copy_source(place)
    (place / "dkms.conf").write_text(CONFIGURATION.format(version=version))
    done = call(["dkms", "install", "-m", source.NAME, "-v", version, "-k", release])
    if done.returncode:
        log = TREE / source.NAME / version / "build/make.log"
        said = log.read_text(errors="replace") if log.exists() else done.stdout + done.stderr
        end = "\n".join(said.rstrip().splitlines()[-LOG_LINES:])
        raise ModuleError(f"DKMS cannot build the kernel module for {release}:\n{end}")


def remove(version: str) -> None:
    """Remove a version for every kernel, and its source.

    Raises:
        ModuleError: DKMS refuses.
    """
    if (TREE / source.NAME / version).exists():
        done = call(["dkms", "remove", "-m", source.NAME, "-v", version, "--all"])
        if done.returncode:
            raise ModuleError(f"DKMS does not remove softcard/{version}: {last_line(done)}")
    shutil.rmtree(folder(version), ignore_errors=True)


def versions() -> list[str]:
    """The versions of which DKMS, or its folder of sources, has something."""
    known = {build.version for build in builds()}
    known |= {path.name.removeprefix("softcard-") for path in SOURCES.glob("softcard-[0-9]*")}
    return sorted(known)
