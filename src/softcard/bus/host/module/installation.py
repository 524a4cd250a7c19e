"""Installing the module, and taking all of that back."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from softcard.bus.host.device import open_device
from softcard.bus.host.module import access, dkms, loading, source
from softcard.bus.host.module.errors import ModuleError
from softcard.bus.host.module.programs import there
from softcard.errors import UsageError

MODULES = Path("/lib/modules")
Tell = Callable[[str], None]


def check_machine(release: str, machine: str) -> None:
    """Raise `UsageError` unless the module can be built and loaded by this user, here and now."""
    source.check_kernel(release, machine)
    _check_root("install")
    headers = f"linux-headers-{release}"
    missing = [] if there("dkms") else ["dkms"]
    if not has_headers(release):
        missing.append(headers)
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} must be there to build the kernel module: apt-get install "
            f"{' '.join(missing)}"
        )
    _check_unused()


def has_headers(release: str) -> bool:
    """Whether modules can be built for a kernel."""
    return (MODULES / release / "build/Makefile").exists()


def _check_root(command: str) -> None:
    if os.geteuid():
        raise UsageError(
            f"softcard host {command} changes the system: let root run it, as with "
            f'sudo "$(command -v softcard)" host {command}'
        )


def _check_unused() -> None:
    if loading.users():
        raise UsageError("the kernel module is in use: unplug the cards of all programs first")


def install(tell: Tell, *, at_boot: bool = False) -> None:
    """Build the module with DKMS, give /dev/softcard to a group, and load it.

    What was there of another version is replaced. When something fails, nothing of it all is left;
    but a module that only lacks the right signature stays.

    Args:
        tell: called with each step that begins.
        at_boot: have it loaded whenever the machine starts.

    Raises:
        UsageError: it cannot be done here.
        ModuleError: it does not build, or the kernel refuses it.
    """
    try:
        _install(tell, at_boot=at_boot)
    except OSError as error:
        raise ModuleError(f"{error.filename}: {error.strerror}") from None


def _install(tell: Tell, *, at_boot: bool) -> None:
    release, version = os.uname().release, source.version()
    check_machine(release, os.uname().machine)
    with ExitStack() as undo:
        former = dkms.versions()
        if version in former:
            dkms.remove(version)
            former.remove(version)
        tell(f"DKMS builds the module for Linux {release}")
        undo.callback(_try, dkms.remove, version)
        dkms.install(version, release)
        for each in former:
            dkms.remove(each)
        _give_to_group(undo, tell)
        if at_boot:
            undo.callback(loading.AT_BOOT.unlink, missing_ok=True)
            loading.AT_BOOT.parent.mkdir(parents=True, exist_ok=True)
            loading.AT_BOOT.write_text(f"{source.NAME}\n")
        if loading.is_loaded():
            loading.unload()
        try:
            _load(undo)
        except loading.UnknownKeyError:
            undo.pop_all()
            raise
        tell("The module is loaded")
        undo.pop_all()


def _give_to_group(undo: ExitStack, tell: Tell) -> None:
    if not access.group_exists():
        tell(f"Group {access.GROUP} is made")
        access.add_group()
        undo.callback(_try, access.remove_group)
    undo.callback(access.remove_rule)
    access.write_rule()


def _load(undo: ExitStack) -> None:
    loading.load()
    undo.callback(_try, loading.unload)
    access.apply_rule()
    # It answers, and in the version that this softcard speaks.
    os.close(open_device())


def _try(step: Callable[..., None], *arguments: str) -> None:
    try:
        step(*arguments)
    except ModuleError:
        pass  # what is told is why all of it is taken back


def uninstall(tell: Tell) -> bool:
    """Unload the module, and remove all that `install` has put anywhere.

    Args:
        tell: called with each step that begins.

    Returns:
        Whether there was anything to remove.

    Raises:
        UsageError: it cannot be done here.
        ModuleError: something could not be removed; all the rest is.
    """
    _check_root("uninstall")
    _check_unused()
    steps: list[tuple[str, Callable[[], None]]] = []
    if loading.is_loaded():
        steps.append(("The module is unloaded", loading.unload))
    steps += [(f"DKMS removes softcard/{v}", partial(dkms.remove, v)) for v in dkms.versions()]
    if loading.AT_BOOT.exists():
        steps.append((f"{loading.AT_BOOT} is removed", loading.AT_BOOT.unlink))
    if access.RULE_FILE.exists():
        steps.append((f"{access.RULE_FILE} is removed", access.remove_rule))
    if access.group_exists():
        steps.append((f"Group {access.GROUP} is removed", access.remove_group))
    failed = []
    for sentence, step in steps:
        tell(sentence)
        try:
            step()
        except (ModuleError, OSError) as error:
            failed.append(str(error))
    if failed:
        raise ModuleError("; ".join(failed))
    return bool(steps)
