"""The module in the running kernel."""

from __future__ import annotations

from pathlib import Path

from softcard.bus.host.module import dkms, source
from softcard.bus.host.module.errors import ModuleError
from softcard.bus.host.module.programs import call, last_line

LOADED = Path("/sys/module", source.NAME)
AT_BOOT = Path("/etc/modules-load.d/softcard.conf")
# What modprobe says where the kernel takes none but signed modules: ENOKEY, EKEYREJECTED, EPERM.
UNSIGNED = ("Required key not available", "Key was rejected", "Operation not permitted")


class UnknownKeyError(ModuleError):
    """The kernel does not know the key that the module is signed with."""


def is_loaded() -> bool:
    """Whether the module is loaded."""
    return LOADED.exists()


def users() -> int:
    """How many hold the module: cards, and programs that have the device open."""
    try:
        return int((LOADED / "refcnt").read_text())
    except OSError:
        return 0


def load() -> None:
    """Load the module that is installed.

    Raises:
        UnknownKeyError: it would have to be signed with a key that the kernel knows.
        ModuleError: the kernel refuses it.
    """
    done = call(["modprobe", source.NAME])
    if not done.returncode:
        return
    why = last_line(done)
    if any(text in why for text in UNSIGNED):
        key = dkms.key() or dkms.KEYS[0]
        raise UnknownKeyError(
            "the module is installed, but this kernel takes none whose key it does not know: "
            f"mokutil --import {key}, restart the machine, confirm the key there, and modprobe "
            "softcard"
        )
    raise ModuleError(f"the kernel module cannot be loaded, dmesg says more: {why}")


def unload() -> None:
    """Unload the module.

    Raises:
        ModuleError: somebody uses it.
    """
    done = call(["rmmod", source.NAME])
    if done.returncode:
        raise ModuleError(f"the kernel module cannot be unloaded: {last_line(done)}")
