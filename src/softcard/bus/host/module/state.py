"""How things are with the module on this machine."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from softcard.bus.host import uapi
from softcard.bus.host.module import access, dkms, loading, source
from softcard.bus.host.module.dkms import Build
from softcard.bus.host.module.installation import has_headers
from softcard.bus.host.module.programs import call, there

EFI = Path("/sys/firmware/efi")
SECURE_BOOT = EFI / "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
LOCKDOWN = Path("/sys/kernel/security/lockdown")
ENFORCED = Path("/sys/module/module/parameters/sig_enforce")


@dataclass(frozen=True)
class DeviceNode:
    """/dev/softcard.

    Attributes:
        mode: its permission bits.
        owner, group: names.
        usable: whether this user may use it.
    """

    mode: int
    owner: str
    group: str
    usable: bool


@dataclass(frozen=True)
class SecureBoot:
    """What the kernel asks of modules.

    Attributes:
        on: Secure Boot; None where the machine has none, or that cannot be told.
        lockdown: none, integrity or confidentiality; empty where that cannot be told.
        enforced: whether all modules must be signed, whatever else is so.
        key: the key that DKMS signs with; None where it has made none yet.
        enrolled: whether the machine's firmware has been told that key; None where that cannot be
            told.
    """

    on: bool | None
    lockdown: str
    enforced: bool
    key: Path | None
    enrolled: bool | None

    @property
    def wants_signature(self) -> bool:
        """Whether an unsigned module is refused."""
        return self.enforced or self.lockdown in ("integrity", "confidentiality")


@dataclass(frozen=True)
class State:
    """All that can be found out, also by an ordinary user.

    Attributes:
        release, machine: of the running kernel.
        supported: whether the module is for it.
        headers: whether modules can be built for it.
        dkms: whether DKMS is there.
        version: of this softcard.
        builds: what DKMS has of the module.
        loaded: whether the module is loaded.
        api: the version of its interface; None where this user cannot ask for it.
        device: /dev/softcard; None where there is none.
        user: this user's name.
        member: whether the user is in the group, according to the system's files.
        at_boot: whether the module is loaded when the machine starts.
        secure_boot: what the kernel asks of modules.
    """

    release: str
    machine: str
    supported: bool
    headers: bool
    dkms: bool
    version: str
    builds: tuple[Build, ...]
    loaded: bool
    api: int | None
    device: DeviceNode | None
    user: str
    member: bool
    at_boot: bool
    secure_boot: SecureBoot


def look() -> State:
    """Find out."""
    system = os.uname()
    user = _user_name(os.geteuid())
    return State(
        release=system.release,
        machine=system.machine,
        supported=source.supported(system.release) and system.machine == "x86_64",
        headers=has_headers(system.release),
        dkms=there("dkms"),
        version=source.version(),
        builds=tuple(dkms.builds()),
        loaded=loading.is_loaded(),
        api=_api(),
        device=_device(),
        user=user,
        member=access.group_exists() and user in grp.getgrnam(access.GROUP).gr_mem,
        at_boot=loading.AT_BOOT.exists(),
        secure_boot=_secure_boot(),
    )


def _api() -> int | None:
    try:
        fd = os.open(uapi.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return fcntl.ioctl(fd, uapi.GET_API)
    except OSError:
        return None
    finally:
        os.close(fd)


def _device() -> DeviceNode | None:
    try:
        found = os.stat(uapi.DEVICE)  # noqa: PTH116
    except OSError:
        return None
    return DeviceNode(
        stat.S_IMODE(found.st_mode), _user_name(found.st_uid), _group_name(found.st_gid),
        os.access(uapi.DEVICE, os.R_OK | os.W_OK),
    )  # fmt: skip


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _secure_boot() -> SecureBoot:
    lockdown = re.search(r"\[(\w+)\]", _text(LOCKDOWN))
    key = dkms.key()
    return SecureBoot(
        on=_secure_boot_is_on(),
        lockdown=lockdown[1] if lockdown else "",
        enforced=_text(ENFORCED).strip() == "Y",
        key=key,
        enrolled=_is_enrolled(key) if key else None,
    )


def _secure_boot_is_on() -> bool | None:
    try:
        # Four bytes of attributes come before the variable's one.
        return SECURE_BOOT.read_bytes()[4] == 1
    except (OSError, IndexError):
        return None


def _is_enrolled(key: Path) -> bool | None:
    said = call(["mokutil", "--test-key", str(key)])
    text = said.stdout + said.stderr
    if "is already enrolled" in text:
        return True
    return False if "is not enrolled" in text else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
