"""Work of a card between register accesses: timers, descriptors, coroutines, pollers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from softcard import Bar, Card, PlugError, Register, ResetKind
from softcard.bus.simulated import SimulatedBus, SimulatedDevice


class Worker(Card):
    vendor_id, device_id = 0x1DED, 0x0500

    class bar0(Bar, size=4096):
        go = Register(0)

    def __init__(self) -> None:
        super().__init__()
        self.done: list[object] = []
        self.started_in_reset = False

    def on_reset(self, kind: ResetKind) -> None:
        self.started_in_reset = self.after(1, self.done.append, "reset") is not None


@pytest.fixture
def card() -> Worker:
    return Worker()


@pytest.fixture
def device(simulated_bus: SimulatedBus, card: Worker) -> SimulatedDevice:
    device = simulated_bus.plug(card)[0]
    simulated_bus.run_for(2)
    card.done.clear()
    return device


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


# Timers.


def test_a_timer_runs_once_and_not_before_its_time(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    card.after(1.0, card.done.append, "late")
    simulated_bus.run_for(0.999)
    assert card.done == []
    simulated_bus.run_for(0.001)
    assert card.done == ["late"]
    simulated_bus.run_for(100)
    assert card.done == ["late"]


def test_timers_run_in_the_order_of_their_times_and_see_them(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    start = simulated_bus.now
    for delay in (0.3, 0.1, 0.2):
        card.after(delay, lambda: card.done.append(round(card.loop.time() - start, 6)))
    simulated_bus.run_for(10)
    assert card.done == [0.1, 0.2, 0.3]


def test_a_timer_may_start_the_next(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    def tick() -> None:
        card.done.append(len(card.done))
        card.after(0.1, tick)

    card.after(0.1, tick)
    simulated_bus.run_for(1.05)
    assert card.done == list(range(10))


def test_a_cancelled_timer_does_not_run(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    card.after(0.1, card.done.append, 1).cancel()
    simulated_bus.run_for(1)
    assert card.done == []


def test_virtual_time_costs_none(simulated_bus: SimulatedBus, card: Worker) -> None:
    simulated_bus.plug(card)
    card.after(3600 * 24 * 365, card.done.append, "a year")
    simulated_bus.run_for(3600 * 24 * 366)
    assert card.done == ["reset", "a year"]


def test_a_card_that_comes_later_shares_the_time(
    simulated_bus: SimulatedBus, card: Worker, device: SimulatedDevice
) -> None:
    simulated_bus.run_for(10)
    late = Worker()
    simulated_bus.plug(late)
    assert late.loop.time() == card.loop.time() == simulated_bus.now
    simulated_bus.run_for(0.5)
    assert late.done == []
    simulated_bus.run_for(0.5)
    assert late.done == ["reset"]


def test_a_timers_exception_raises_in_the_test(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    card.after(0.1, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        simulated_bus.run_for(1)
    assert card.endpoint.errors[-1].doing == "timer"


# File descriptors.


def test_a_watched_descriptor_calls_when_it_is_readable(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus, pipe: tuple[int, int]
) -> None:
    read, write = pipe
    card.watch(read, lambda: card.done.append(os.read(read, 100)))
    simulated_bus.run_for(1)
    assert card.done == []
    os.write(write, b"frame")
    simulated_bus.run_for(0)
    assert card.done == [b"frame"]
    card.unwatch(read)
    os.write(write, b"more")
    simulated_bus.run_for(1)
    assert card.done == [b"frame"]


def test_an_exception_at_a_descriptor_raises_in_the_test(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus, pipe: tuple[int, int]
) -> None:
    read, write = pipe
    os.write(write, b"x")
    card.watch(read, lambda: [][os.read(read, 1)[0]])
    with pytest.raises(IndexError):
        simulated_bus.run_for(0)
    assert card.endpoint.errors[-1].doing == f"event on descriptor {read}"


# Coroutines.


def test_a_coroutine_runs_between_accesses(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    async def work() -> None:
        await asyncio.sleep(0.5)
        card.done.append("half")
        await asyncio.sleep(0.5)
        card.done.append("whole")

    card.spawn(work())
    simulated_bus.run_for(0.6)
    assert card.done == ["half"]
    assert device.read(0, 0) == 0
    simulated_bus.run_for(0.6)
    assert card.done == ["half", "whole"]


def test_a_coroutine_may_wait_for_a_thread(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    gate = threading.Event()

    async def work() -> None:
        card.done.append(await asyncio.to_thread(gate.wait, 10))

    card.spawn(work())
    simulated_bus.run_for(0)
    assert device.read(0, 0) == 0
    gate.set()
    simulated_bus.run_until(lambda: card.done)
    assert card.done == [True]


def test_a_coroutines_exception_raises_in_the_test(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    async def fail() -> None:
        raise LookupError("lost")

    card.spawn(fail())
    with pytest.raises(LookupError, match="lost"):
        simulated_bus.run_for(0)
    assert "background task" in card.endpoint.errors[-1].doing


def test_unplugging_cancels_coroutines_and_lets_them_finish(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            card.done.append("tidied")

    card.spawn(work())
    simulated_bus.run_for(0)
    device.slot.unplug()
    assert card.done == ["tidied"]
    assert not card.endpoint.errors


def test_without_a_slot_there_is_no_background(card: Worker, device: SimulatedDevice) -> None:
    device.slot.unplug()
    with pytest.raises(PlugError, match="Worker is not plugged in"):
        card.after(1, print)


# Pollers.


class Mailbox:
    """A poller with a list for a doorbell."""

    def __init__(self) -> None:
        self.letters: list[str] = []
        self.taken: list[str] = []

    def poll(self) -> bool:
        found, self.letters = self.letters, []
        self.taken += found
        return bool(found)

    def arm(self) -> bool:
        return bool(self.letters)

    def disarm(self) -> None:
        pass


def test_a_poller_is_polled_while_time_passes(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    mailbox = Mailbox()
    card.poll(mailbox)
    mailbox.letters.append("one")
    simulated_bus.run_for(0)
    assert mailbox.taken == ["one"]
    card.unpoll(mailbox)
    mailbox.letters.append("two")
    simulated_bus.run_for(1)
    assert mailbox.taken == ["one"]


def test_a_poller_starts_and_timers_run_on(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    class Busy(Mailbox):
        def poll(self) -> bool:
            return True

    card.poll(Busy())
    card.after(0.5, card.done.append, "timer")
    simulated_bus.run_for(1)
    assert card.done == ["timer"]


# Deferred calls.


def hook_go(card: Worker, call: Callable[[int], object]) -> None:
    file = card.bars[0].file
    file.hook_write(file.registers[0], call)


def test_what_a_hook_defers_is_done_after_the_access(
    card: Worker, device: SimulatedDevice, simulated_bus: SimulatedBus
) -> None:
    def start(value: int) -> None:
        card.defer(card.done.append, value)
        assert card.done == []

    hook_go(card, start)
    device.write(0, 0, 7)
    assert card.done == [7]


@pytest.mark.parametrize("strict", [True, False])
def test_an_error_in_a_deferred_call_belongs_to_the_access(strict: bool) -> None:
    bus, card = SimulatedBus(strict=strict), Worker()
    device = bus.plug(card)[0]
    nothing: list[int] = []
    hook_go(card, lambda _value: card.defer(nothing.pop))
    if strict:
        with pytest.raises(IndexError):
            device.write(0, 0, 1)
    else:
        device.write(0, 0, 1)
    assert [error.doing for error in card.endpoint.errors] == ["deferred call"]
