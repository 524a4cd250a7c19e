"""`softcard host`: the kernel module that puts cards on this machine's own PCI bus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from softcard.cli.findings import Finding, show
from softcard.cli.output import err, out

if TYPE_CHECKING:
    from softcard.bus.host.module import SecureBoot, State

# root's PATH does not have what a virtual environment has.
INSTALL = 'sudo "$(command -v softcard)" host install'


@click.group()
def host() -> None:
    """Put softcard's kernel module on this machine, for softcard run --bus host.

    install and uninstall are for root; the bus then is for the members of the group softcard.
    """


@host.command()
@click.option("--at-boot", is_flag=True, help="Load the module whenever the machine starts, too.")
def install(at_boot: bool) -> None:
    """Build the module with DKMS, load it, and give /dev/softcard to the group softcard.

    DKMS builds it again for each kernel that is installed later. When something fails, nothing of
    all that is left.
    """
    from softcard.bus.host.module import install as install_module

    install_module(_say, at_boot=at_boot)
    out().print(
        "The host bus is ready: softcard run nvme --bus host -- lsblk. "
        "usermod --append --groups softcard USER lets others than root use it.", markup=False,
    )  # fmt: skip


@host.command()
def uninstall() -> None:
    """Unload the module, and remove all that install has put anywhere."""
    from softcard.bus.host.module import uninstall as uninstall_module

    removed = uninstall_module(_say)
    out().print(
        "Nothing of the host bus is left." if removed else "Nothing of the host bus is here."
    )


@host.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Tell whether cards can be plugged into this machine, and what mends what is missing.

    The exit status is 1 where this user cannot plug in a card.
    """
    from softcard.bus.host.module import look

    findings = list(describe(look()))
    show(findings)
    broken = [f.about for f in findings if f.good is False and f.needed]
    if broken:
        what = ", ".join(broken)
        out().print(f"\nCards cannot be plugged into this machine yet: {what}.", style="red")
        ctx.exit(1)
    out().print("\nCards can be plugged in: softcard run nvme --bus host -- lsblk", style="green")


def _say(step: str) -> None:
    err().print(step, style="dim", markup=False)


def describe(state: State) -> Iterator[Finding]:
    """The lines of `softcard host status`."""
    from softcard.bus.host.module.source import NEWEST, OLDEST

    oldest, newest = (".".join(map(str, each)) for each in (OLDEST, NEWEST))
    yield Finding(
        "kernel", state.supported, f"Linux {state.release} on {state.machine}",
        "" if state.supported else f"the module is for Linux {oldest} to {newest} on x86_64",
    )  # fmt: skip
    yield from _describe_tools(state)
    yield from _describe_module(state)
    yield from _describe_device(state)
    yield from _describe_secure_boot(state.secure_boot, loaded=state.loaded)


def _describe_tools(state: State) -> Iterator[Finding]:
    headers = f"linux-headers-{state.release}"
    missing = [] if state.dkms else ["dkms"]
    if not state.headers:
        missing.append(headers)
    yield Finding(
        "DKMS and headers", not missing,
        f"without {' and '.join(missing)} no module can be built" if missing else "here",
        f"sudo apt-get install {' '.join(missing)}" if missing else "", needed=not state.loaded,
    )  # fmt: skip


def _describe_module(state: State) -> Iterator[Finding]:
    built = [b for b in state.builds if b.state == "installed"]
    ours = [b for b in built if b.kernel == state.release and b.version == state.version]
    if built:
        found = ", ".join(f"{b.version} for Linux {b.kernel}" for b in built)
        mend = "" if ours else f"this softcard is {state.version}: {INSTALL}"
    else:
        found, mend = "not installed", INSTALL
    yield Finding("module installed", bool(ours), found, mend, needed=not state.loaded)
    yield Finding(
        "module loaded", state.loaded, "yes" if state.loaded else "no",
        "" if state.loaded else "sudo modprobe softcard" if ours else INSTALL,
    )  # fmt: skip
    boot = "yes" if state.at_boot else "no: softcard host install --at-boot, or modprobe softcard"
    yield Finding("loaded at boot", None, boot)


def _describe_device(state: State) -> Iterator[Finding]:
    from softcard.bus.host.uapi import API, DEVICE

    if state.device is None:
        return
    node = state.device
    mend = ""
    if not node.usable and node.group != "softcard":
        mend = f"it is not the group's: {INSTALL}"
    elif not node.usable and state.member:
        mend = "you are in the group since you have logged in: log in anew"
    elif not node.usable:
        mend = f"sudo usermod --append --groups softcard {state.user}, and log in anew"
    may = "may" if node.usable else "may not"
    yield Finding(
        DEVICE, node.usable,
        f"{node.owner}:{node.group} {node.mode:04o}, and {state.user} {may} use it", mend,
    )  # fmt: skip
    if state.api is not None:
        mend = "" if state.api == API else f"{INSTALL} loads the right one"
        yield Finding(
            "interface", state.api == API, f"version {state.api}, and this softcard's is {API}",
            mend,
        )  # fmt: skip


def _describe_secure_boot(found: SecureBoot, *, loaded: bool) -> Iterator[Finding]:
    names = {True: "on", False: "off", None: "none that can be seen"}
    yield Finding("Secure Boot", None, names[found.on])
    if not found.wants_signature:
        lockdown = f", lockdown {found.lockdown}" if found.lockdown else ""
        yield Finding("module signature", None, f"not asked for{lockdown}")
        return
    why = f"lockdown {found.lockdown}" if found.lockdown not in ("", "none") else "sig_enforce"
    if found.key is None:
        yield Finding(
            "module signature", False,
            f"asked for ({why}), and DKMS, which signs, has no key yet: it makes one when it "
            "builds", INSTALL, needed=not loaded,
        )  # fmt: skip
        return
    known = {
        True: "the firmware knows DKMS's key",
        False: "the firmware does not know DKMS's key",
        None: "whether the firmware knows DKMS's key cannot be told without mokutil",
    }
    yield Finding(
        "module signature", found.enrolled, f"asked for ({why}); {known[found.enrolled]}",
        "" if found.enrolled
        else f"sudo mokutil --import {found.key}, restart, and confirm it there",
        needed=not loaded,
    )  # fmt: skip
