"""`softcard demo`: what a new user sees first."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softcard.cli.errors import show_log
from softcard.cli.guest import (
    VISIBLE,
    GuestOptions,
    booted,
    ended_by_signals,
    load_module,
    ready_kernel,
)
from softcard.cli.output import print_at_once
from softcard.cli.source import PACKAGE
from softcard.errors import UsageError
from softcard.model.card import Card
from softcard.model.options import Size

if TYPE_CHECKING:
    from softcard.cli.story import Story
    from softcard.guest.guest import Guest

NORMAL, SMALL = Size("512M"), Size("128M")
DISK, DEVICE, MOUNT = Size("1G"), "/dev/nvme0n1", "/mnt"
DRIVER = "/sys/bus/pci/devices/0000:00:00.0/driver"
EXAMPLES = PACKAGE.parents[1] / "examples"
FIO = (
    f"fio --name=read --filename={DEVICE} --rw=randread --bs=4k --iodepth=16 --direct=1 "
    "--ioengine=libaio --runtime=1 --time_based | grep IOPS"
)
DD = f"dd if={DEVICE} of=/dev/null bs=1M iflag=direct 2>&1 | tail -1"


@click.command()
@click.argument("card", type=click.Choice(["nvme", "edu", "printer"]), default="nvme")
def demo(card: str) -> None:
    """Watch a card work: nvme (the default), edu or printer.

    nvme is formatted, mounted, written and checked by Linux's own driver. edu and printer are
    driven by the small drivers in examples/, which are compiled first.
    """
    if card != "nvme" and not EXAMPLES.is_dir():
        raise UsageError(
            f"softcard demo {card} compiles a driver of examples/, which is in softcard's source "
            "tree only: run it there"
        )
    print_at_once()
    show_log()
    with ended_by_signals():
        ready_kernel()
        {"nvme": nvme, "edu": edu, "printer": printer}[card]()


def nvme() -> None:
    """A disk, from its first format to a check of its file system."""
    from softcard.cards.nvme import Nvme

    with _story(Nvme(size=DISK), f"an NVMe disk of {DISK}, kept in memory") as story:
        story.run(_if_there("lspci", "lspci -nn", "grep . /sys/bus/pci/devices/*/uevent"))
        story.run(_if_there("nvme", "nvme list", "cat /sys/class/nvme/nvme0/model"))
        story.say("Linux's own nvme driver has taken it. A file system, and a file on it:")
        story.run(f"mkfs.ext4 -q {DEVICE}")
        story.run(f"mount {DEVICE} {MOUNT} && df -h {MOUNT}")
        story.run(f"head -c 64M /dev/urandom > {MOUNT}/file")
        before = story.run(f"cd {MOUNT} && sha256sum file")
        story.run(f"umount {MOUNT} && mount {DEVICE} {MOUNT}")
        after = story.run(f"cd {MOUNT} && sha256sum file")
        story.check(before == after, "the file is the same after the disk was mounted again")
        story.run(f"umount {MOUNT} && fsck.ext4 -f -n {DEVICE}")
        story.say("And how fast it is:")
        story.run(_if_there("fio", FIO, DD))


def edu() -> None:
    """Every part of the edu device, tried by its driver."""
    from softcard.cards.edu import Edu

    # It reaches no memory above 256 MiB.
    with _story(Edu(), "QEMU's edu device, for learning to write drivers", SMALL) as story:
        story.run(_if_there("lspci", "lspci -nn", "grep . /sys/bus/pci/devices/*/uevent"))
        _load(story, "edu_driver")


def printer() -> None:
    """The smallest card, its source included."""
    from softcard.cards.printer import Printer

    source = inspect.getsource(Printer).rstrip()
    with _story(Printer(), f"this card, which is all of its code:\n\n{source}") as story:
        story.run(_if_there("lspci", "lspci -nn", "grep . /sys/bus/pci/devices/*/uevent"))
        _load(story, "printer_driver")
        story.run("echo 0xdeadbeef > /sys/bus/pci/devices/0000:00:00.0/message")


@contextmanager
def _story(card: Card, what: str, memory: Size = NORMAL) -> Iterator[Story]:
    from softcard.bus.uml import UmlBus
    from softcard.cli.story import Story

    story = Story()
    options = GuestOptions("uml", memory, False, (), (), 5.0)
    with ExitStack() as stack:
        bus = stack.enter_context(UmlBus())
        story.say(f"{type(card).__name__}: {what}\n")
        bus.plug(card)
        with story.step("an embedded Linux boots, with the card plugged in"):
            story.guest = stack.enter_context(booted(bus, options))
        yield story
        story.end()


def _if_there(program: str, command: str, otherwise: str) -> str:
    """A command, or another where its program is missing: the guest uses this machine's."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return command if shutil.which(program, path=path) else otherwise


def _load(story: Story, example: str) -> None:
    """Compile a driver of examples/ and load it; show what it logs."""
    from softcard.guest.kernel import build_module

    assert story.guest is not None
    with tempfile.TemporaryDirectory(prefix="softcard-", dir=VISIBLE) as name:
        folder = Path(name) / example
        shutil.copytree(EXAMPLES / example, folder)
        with story.step(f"softcard kernel modules examples/{example}", command=True):
            (module,) = build_module(ready_kernel(), folder)
        position = story.guest.log.position()
        with story.step(f"insmod {module.name}", command=True) as show:
            load_module(story.guest, module)
            show("\n".join(_logged_since(story.guest, position)))
        bound = story.guest.run(["test", "-e", DRIVER], check=False).status == 0
        story.check(bound, "the driver has taken the card")


def _logged_since(guest: Guest, position: int) -> list[str]:
    """The kernel's log from `position` on, all that it holds by now."""
    end = f"end of what was logged since line {position}"
    guest.write_file("/dev/kmsg", f"{end}\n")
    guest.log.wait_for(end, position=position)
    return guest.log.since(position)[:-1]
