"""QEMU itself: the machine's own where it is new enough, otherwise one in a private folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from softcard.guest.kernel.cache import cache_folder
from softcard.guest.qemu.errors import QemuError

NAME = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
OLDEST = (10, 1)
CLIENT = "vfio-user-pci"
PROBE_TIMEOUT = 30.0
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Qemu:
    """A QEMU that can be started.

    Attributes:
        command: the program, and what has to come before all other arguments.
        version: such as 11.1.3.
        environment: variables that it needs in addition.
        folder: where it was put by `softcard qemu get`; None for the machine's own.
    """

    command: tuple[str, ...]
    version: str
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


def folder() -> Path:
    """Where QEMU and its kernels are kept, per user."""
    return cache_folder("qemu")


def program_folder() -> Path:
    """Where `softcard qemu get` puts QEMU."""
    return folder() / "program"


def find_qemu() -> Qemu | None:
    """A QEMU that has the vfio-user client; None where there is none."""
    path = shutil.which(NAME)
    if path is not None:
        version = version_of((path,), {})
        if version is not None and is_new_enough(version) and _has_client((path,), {}):
            return Qemu((path,), version)
    return private_qemu(program_folder())


def need_qemu() -> Qemu:
    """As `find_qemu`.

    Raises:
        QemuError: there is none; says what is there instead.
    """
    qemu = find_qemu()
    if qemu is not None:
        return qemu
    path = shutil.which(NAME)
    oldest = ".".join(map(str, OLDEST))
    if path is None:
        raise QemuError(
            f"there is no {NAME} here: softcard qemu get fetches one, or install QEMU {oldest}"
        )
    version = version_of((path,), {})
    if version is None:
        raise QemuError(f"{path} does not start: softcard qemu get fetches one that does")
    if is_new_enough(version):
        raise QemuError(
            f"{path}, QEMU {version}, was built without {CLIENT}: softcard qemu get fetches one "
            "that has it"
        )
    raise QemuError(
        f"{path} is QEMU {version}, and vfio-user needs {oldest} or newer: softcard qemu get "
        "fetches one, and leaves yours as it is"
    )


def is_new_enough(version: str) -> bool:
    """Whether a version of QEMU, or of Debian's package of it, has the vfio-user client."""
    match = re.match(r"(?:\d+:)?(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) >= OLDEST


def private_qemu(prefix: Path) -> Qemu | None:
    """The QEMU in a folder of unpacked packages; None where there is none that starts."""
    program = prefix / "usr/bin" / NAME
    if not program.exists():
        return None
    # The machine's C library may be older than the one that it was built with.
    command = (
        str(prefix / LOADER), "--library-path", str(prefix / LIBRARIES), "--argv0", NAME,
        str(program),
        "-L", str(prefix / "usr/share/qemu"), "-L", str(prefix / "usr/share/seabios"),
    )  # fmt: skip
    # Otherwise it looks for its modules where the machine's own QEMU has others.
    environment = {"QEMU_MODULE_DIR": str(prefix / LIBRARIES / "qemu")}
    version = version_of(command, environment)
    if version is None or not _has_client(command, environment):
        return None
    return Qemu(command, version, environment, prefix)


def version_of(command: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """The version of a QEMU; None where it does not start."""
    said = _ask(command, environment, "--version")
    match = re.search(r"version (\d[\w.]*)", said or "")
    return match[1] if match else None


def _has_client(command: tuple[str, ...], environment: Mapping[str, str]) -> bool:
    said = _ask(command, environment, "-device", f"{CLIENT},help")
    return said is not None and "socket=" in said


def _ask(command: tuple[str, ...], environment: Mapping[str, str], *question: str) -> str | None:
    try:
        done = subprocess.run(
            [*command, *question], capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, env={**os.environ, **environment}, timeout=PROBE_TIMEOUT,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
