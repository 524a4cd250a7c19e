"""Who may use /dev/softcard: root, and a group."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from softcard.bus.host import uapi
from softcard.bus.host.module.errors import ModuleError
from softcard.bus.host.module.programs import call, last_line

GROUP = "softcard"
MODE = 0o660
RULE_FILE = Path("/etc/udev/rules.d/60-softcard.rules")
RULE = f"""\
# Written by softcard host install.
KERNEL=="softcard", SUBSYSTEM=="misc", GROUP="{GROUP}", MODE="{MODE:04o}"
"""


def group_exists() -> bool:
    """Whether there is the group."""
    try:
        grp.getgrnam(GROUP)
    except KeyError:
        return False
    return True


def add_group() -> None:
    """Make the group.

    Raises:
        ModuleError: the system refuses.
    """
    done = call(["groupadd", "--system", GROUP])
    if done.returncode:
        raise ModuleError(f"group {GROUP} cannot be made: {last_line(done)}")


def remove_group() -> None:
    """Remove the group.

    Raises:
        ModuleError: the system refuses, as for somebody's primary group.
    """
    done = call(["groupdel", GROUP])
    if done.returncode:
        raise ModuleError(f"group {GROUP} cannot be removed: {last_line(done)}")


def write_rule() -> None:
    """Give the device to the group, now and whenever it appears."""
    RULE_FILE.parent.mkdir(parents=True, exist_ok=True)
    RULE_FILE.write_text(RULE)
    _tell_udev()


def apply_rule() -> None:
    """Do at once what udev does when it gets to it; where none runs, nobody else does."""
    os.chown(uapi.DEVICE, 0, grp.getgrnam(GROUP).gr_gid)
    os.chmod(uapi.DEVICE, MODE)  # noqa: PTH101 - in one breath with the other


def remove_rule() -> None:
    """Leave the device to root alone."""
    RULE_FILE.unlink(missing_ok=True)
    _tell_udev()


def _tell_udev() -> None:
    call(["udevadm", "control", "--reload"])
