"""A card on the machine's own PCI bus, with the machine itself as the guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softcard.bus.host import HostBus, HostSlot
from softcard.bus.host.device import open_device
from softcard.cli.errors import tell
from softcard.cli.guest import GuestOptions, print_log_line
from softcard.cli.take_out import take_out
from softcard.errors import GuestError, PlugError
from softcard.guest.machine import MachineGuest
from softcard.guest.uevents import DriverWatch
from softcard.model.card import Card


@contextmanager
def opened_machine(options: GuestOptions) -> Iterator[tuple[HostBus, MachineGuest]]:
    """The machine's bus and the machine, with the modules that the user wants loaded.

    Nothing of the run is left: commands end, cards are unplugged, modules are unloaded.

    Raises:
        PlugError: softcard's kernel module cannot be used.
    """
    os.close(open_device())
    echo = print_log_line if options.log else None
    with (
        MachineGuest(echo=echo) as guest,
        _loaded(guest, options.modules),
        HostBus(completion_timeout=options.completion_timeout) as bus,
    ):
        try:
            yield bus, guest
        finally:
            _empty(bus)


def plug(bus: HostBus, card: Card) -> HostSlot:
    """Plug a card in, and wait for its driver where this machine has one."""
    with DriverWatch() as drivers:
        slot = bus.plug(card)
        first = Path(slot.sysfs)
        for device in sorted(first.parent.glob(f"{first.name[:-1]}*")):
            drivers.wait(device)
    return slot


def _empty(bus: HostBus) -> None:
    # Whoever plugs cards in again meanwhile has others than the first.
    for slot in bus.slots:
        try:
            take_out(slot)
        except PlugError:
            pass  # it has been taken out by somebody else
        except GuestError as error:
            tell(str(error))


@contextmanager
def _loaded(guest: MachineGuest, modules: tuple[Path, ...]) -> Iterator[None]:
    loaded: list[str] = []
    try:
        for module in modules:
            name = module.name.partition(".")[0].replace("-", "_")
            if Path("/sys/module", name).exists():
                raise GuestError(f"module {name} is loaded already: rmmod {name} unloads it")
            guest.load_module(module)
            loaded.append(name)
        yield
    finally:
        for name in reversed(loaded):
            try:
                guest.unload_module(name)
            except GuestError as error:
                tell(f"module {name} stays loaded: {error}")
