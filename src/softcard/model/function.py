"""A function of a card: what its author writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from softcard.errors import DeclarationError, PlugError
from softcard.model.bar import Bar, Shadow, declared_memories
from softcard.model.dma import Dma
from softcard.model.endpoint import Endpoint, bars_of
from softcard.model.interrupts import Interrupts
from softcard.model.link import Downstream, PowerState, ResetKind
from softcard.model.loop import CardLoop, Poller
from softcard.pcie.capabilities import Msi, MsiX, PciExpress
from softcard.pcie.capability import Capability
from softcard.pcie.config import ConfigSpace, Identity
from softcard.pcie.register import Register, RegisterArray, hooks_of
from softcard.pcie.register_file import declared_registers

if TYPE_CHECKING:
    from softcard.model.card import Card

C = TypeVar("C", bound=Capability)
T = TypeVar("T")
Args = TypeVarTuple("Args")


class Function:
    """One function: its configuration space, BARs, interrupts and DMA.

    Subclasses declare class attributes as a data sheet lists them: ids, BARs as nested classes
    named `bar0` to `bar5`, capabilities in the order of their list. Ids and capabilities that
    depend on an argument are set on `self` before `super().__init__()` is called.

    Attributes:
        vendor_id, device_id, revision_id, class_code, subsystem_vendor_id, subsystem_id,
        interrupt_pin: see `softcard.pcie.config.Identity`.
        migratable: the state can be saved and loaded, on a bus that asks for it: registers and
            memory by themselves, all else by `save_state` and `load_state`.
        dma: the driver's memory, by bus address.
        config: the configuration space.
        bars: this function's own BARs by number; also as `self.bar0` to `self.bar5`.
        card: the card that this function belongs to.
        link: the downstream half of the link, which a bus calls. An interposer wraps it before the
            card is plugged in: `card.link = Trace(card.link)`.
        endpoint: its end at the function, without interposers.
    """

    vendor_id: int
    device_id: int
    revision_id: int = 0
    class_code: int = 0xFF0000
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0
    interrupt_pin: int = 0
    migratable: bool = False

    card: Card

    def __init__(self) -> None:
        self.dma = Dma()
        self.bars: dict[int, Bar] = self._make_bars()
        for number, bar in self.bars.items():
            setattr(self, f"bar{number}", bar)
        self.config = self._make_config()
        self._place_msix_tables()
        self.interrupts = Interrupts(self.config, self.capability(Msi), self.capability(MsiX))
        self._bind_hooks()
        self.endpoint = self._make_endpoint()
        self.link: Downstream = self.endpoint

    def _make_bars(self) -> dict[int, Bar]:
        return {number: bar() for number, bar in bars_of(type(self)).items()}

    def _make_endpoint(self) -> Endpoint:
        return Endpoint(self)

    def _make_config(self) -> ConfigSpace:
        for name in ("vendor_id", "device_id"):
            if not isinstance(getattr(self, name, None), int):
                raise DeclarationError(
                    f"card {type(self).__name__} has no {name}: give it one as a class attribute"
                )
        identity = Identity(
            vendor_id=self.vendor_id,
            device_id=self.device_id,
            revision_id=self.revision_id,
            class_code=self.class_code,
            subsystem_vendor_id=self.subsystem_vendor_id,
            subsystem_id=self.subsystem_id,
            interrupt_pin=self.interrupt_pin,
        )
        declared = _capabilities_of(self)
        config = ConfigSpace(
            identity,
            {number: bar.layout for number, bar in self.bars.items()},
            declared.values(),
            multi_function=self.in_multi_function_card,
        )
        for name, placed in zip(declared, config.capabilities, strict=True):
            setattr(self, name, placed)
        return config

    def _place_msix_tables(self) -> None:
        msix = self.capability(MsiX)
        if msix is None:
            return
        for what, (bar, offset), region in (
            ("MSI-X table", msix.table, msix.table_region),
            ("MSI-X pending bit array", msix.pba, msix.pba_region),
        ):
            if bar not in self.bars:
                raise DeclarationError(f"the {what} is in BAR {bar}, which the card does not have")
            self.bars[bar].file.add_region(what, offset, region.size, region)

    def _bind_hooks(self) -> None:
        bound: dict[int, tuple[Bar, str]] = {}
        for bar in self.bars.values():
            for name, register in declared_registers(type(bar)).items():
                bound[id(register)] = (bar, name)
            for name, memory in declared_memories(type(bar)).items():
                bound[id(memory)] = (bar, name)
        for name in dir(type(self)):
            # A method that overrides a hook is one, decorated anew or not.
            marks = [hooks_of(vars(owner).get(name)) for owner in type(self).__mro__]
            for kind, declared in {(k, id(d)): (k, d) for m in marks for k, d in m}.values():
                if id(declared) not in bound:
                    raise DeclarationError(
                        f"{name} hooks register {declared.name}, which is in no BAR of "
                        f"{type(self).__name__}"
                    )
                bar, attribute = bound[id(declared)]
                _hook(bar, getattr(bar, attribute), kind, getattr(self, name))

    # What a card's author calls.

    def capability(self, kind: type[C]) -> C | None:
        """The function's own capability of this kind, or None."""
        return next((c for c in self.config.capabilities if isinstance(c, kind)), None)

    def interrupt(self, vector: int = 0) -> None:
        """Interrupt the driver, by MSI-X, MSI or INTx, whichever it enabled.

        An MSI or MSI-X vector that is masked stays pending until it is unmasked. INTx is a level:
        the line stays asserted until `deassert` is called for the same vector, which a card does
        where its data sheet says that the interrupt is acknowledged. May be called from any
        thread; does nothing while the card is not plugged in.

        Raises:
            ValueError: the card has no such vector.
        """
        self.interrupts.signal(vector)

    def deassert(self, vector: int = 0) -> None:
        """The cause of the interrupt is gone; releases INTx, does nothing for MSI and MSI-X."""
        self.interrupts.release(vector)

    @property
    def loop(self) -> CardLoop:
        """The asyncio loop that this card's code runs on.

        Raises:
            PlugError: the card is not plugged in.
        """
        loop = self.card.current_loop
        if loop is None:
            raise PlugError(
                f"{type(self).__name__} is not plugged in: timers, file descriptors and "
                "coroutines start in on_reset or later"
            )
        return loop

    def after(
        self, seconds: float, call: Callable[[*Args], object], *args: *Args
    ) -> asyncio.TimerHandle:
        """Call `call(*args)` once, `seconds` from now; `cancel()` the result to prevent it."""
        return self.loop.call_later(seconds, partial(self.endpoint.guarded, "timer", call, *args))

    def watch(self, fd: int, call: Callable[[*Args], object], *args: *Args) -> None:
        """Call `call(*args)` whenever file descriptor `fd` is readable."""
        self.loop.add_reader(
            fd, partial(self.endpoint.guarded, f"event on descriptor {fd}", call, *args)
        )

    def unwatch(self, fd: int) -> None:
        """No longer watch `fd`."""
        self.loop.remove_reader(fd)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine between register accesses; it is cancelled when the card is unplugged.

        Each of its steps delays an access that comes meanwhile; what takes long belongs into
        `asyncio.to_thread`.
        """
        task = self.loop.create_task(coroutine)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.endpoint.report(f"background task {task.get_name()}", error)

    def defer(self, call: Callable[[*Args], object], *args: *Args) -> None:
        """Call `call(*args)` once the bus has handed over all accesses that it has at hand.

        A hook of a doorbell notes what the driver wrote, and defers the work: a batch of doorbells
        is then one piece of work. To be called from a card's code on its own thread.
        """
        self.loop.defer(partial(self.endpoint.guarded, "deferred call", call, *args))

    def poll(self, poller: Poller, *, silent: bool = False) -> None:
        """Poll a source of work, such as a doorbell in memory, whenever the bus is polled.

        Args:
            poller: the source.
            silent: it cannot wake the card's loop, which then looks again and again: up to a
                thousand times in a second while there is nothing to do.
        """
        self.loop.add_poller(poller, silent=silent)

    def unpoll(self, poller: Poller) -> None:
        """Poll it no longer."""
        if self.card.current_loop is not None:
            self.card.current_loop.remove_poller(poller)

    # What a card's author may override.

    @property
    def in_multi_function_card(self) -> bool:
        """Whether the card has other functions; one that is not function 0 is never alone."""
        return True

    @property
    def supports_flr(self) -> bool:
        """Whether the function declares function level reset."""
        express = self.capability(PciExpress)
        return express is not None and express.flr

    def on_reset(self, kind: ResetKind) -> None:
        """Called after each reset, power-on included; registers hold their reset values."""

    def on_power_state(self, state: PowerState) -> None:
        """Called when the driver changed the power state."""

    def on_memory_removed(self, address: int, size: int) -> None:
        """Views from `dma.map` of this memory must not be used after this method returns."""

    def on_suspend(self) -> None:
        """The function is about to be suspended: finish or stop what is under way. DMA and
        interrupts still work."""

    def on_resume(self) -> None:
        """The function goes on, perhaps with a state that was just loaded."""

    def save_state(self) -> bytes:
        """What the function has beside registers and memory; see `migratable`."""
        return b""

    def load_state(self, state: bytes) -> None:
        """Take what another function's `save_state` returned.

        Raises:
            StateError: it does not fit.
        """

    def on_unplug(self) -> None:
        """The card is no longer plugged in; DMA and interrupts do not work any more."""


def _capabilities_of(function: Function) -> dict[str, Capability]:
    found: dict[str, Capability] = {}
    for owner in reversed(type(function).__mro__):
        for name, value in vars(owner).items():
            if isinstance(value, Capability):
                found[name] = value
            else:
                found.pop(name, None)
    own = {n: value for n, value in vars(function).items() if isinstance(value, Capability)}
    return found | own


def _hook(
    bar: Bar,
    register: Register | RegisterArray[Register] | Shadow,
    kind: str,
    method: Callable[..., Any],
) -> None:
    if isinstance(register, Shadow):
        register.hook = method
        return
    enter: Callable[[Register, Callable[..., Any]], None] = (
        bar.file.hook_read if kind == "read" else bar.file.hook_write
    )
    if isinstance(register, RegisterArray):
        for index, element in enumerate(register):
            enter(element, partial(method, index))
    else:
        enter(register, method)
