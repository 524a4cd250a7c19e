"""The loop that serves a bus inside asyncio's selector, in real time."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from softcard.model.loop import CardLoop

TIMEOUT = 5.0


class SocketPort:
    """A port whose commands are bytes in a socket; each wake-up is one byte."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.served: list[bytes] = []
        self.log: list[str] = []
        self.on_command: Callable[[bytes], object] = lambda command: None
        self.commands: list[bytes] = []
        self.armed = False

    def send(self, command: bytes) -> None:
        """From another thread: offer a command, and wake the loop if it sleeps."""
        self.commands.append(command)
        if self.armed:
            self.theirs.send(b"!")

    def poll(self) -> bool:
        found = bool(self.commands)
        while self.commands:
            command = self.commands.pop(0)
            self.served.append(command)
            self.on_command(command)
        return found

    def arm(self) -> bool:
        self.log.append("arm")
        self.armed = True
        return bool(self.commands)

    def disarm(self) -> None:
        self.log.append("disarm")
        self.armed = False

    def fileno(self) -> int:
        return self.ours.fileno()

    def receive(self) -> None:
        self.log.append("receive")
        self.ours.recv(100)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Runner:
    """A loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = CardLoop()
        self.port = SocketPort()
        self.loop.add_port(self.port)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(TIMEOUT)
            assert not self.thread.is_alive()
        self.loop.shut_down()
        self.port.close()


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.stop()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1e-4)


def test_commands_are_served_from_sleep_and_in_order(runner: Runner) -> None:
    runner.thread.start()
    for number in range(50):
        if number % 10 == 0:
            wait_for(lambda: runner.port.armed)
        runner.port.send(b"%d" % number)
    wait_for(lambda: len(runner.port.served) == 50)
    assert runner.port.served == [b"%d" % number for number in range(50)]


def test_before_it_sleeps_it_looks_once_more(runner: Runner) -> None:
    port = runner.port
    arm = port.arm

    def arm_as_a_command_comes() -> bool:
        if not port.served:
            port.commands.append(b"at the last moment")
        return arm()

    port.arm = arm_as_a_command_comes  # type: ignore[method-assign]
    runner.thread.start()
    wait_for(lambda: port.served)
    assert port.log[:2] == ["arm", "disarm"]


def test_an_armed_port_is_disarmed_when_it_wakes(runner: Runner) -> None:
    runner.thread.start()
    wait_for(lambda: runner.port.armed)
    runner.port.send(b"x")
    wait_for(lambda: runner.port.served)
    wait_for(lambda: runner.port.armed)
    assert runner.port.log.index("disarm") < runner.port.log.index("receive")


@pytest.mark.parametrize("how", ["call_soon", "call_later", "create_task", "stop"])
def test_what_a_handler_schedules_runs_without_another_wake_up(runner: Runner, how: str) -> None:
    done = threading.Event()

    async def work() -> None:
        done.set()

    def schedule(_command: bytes) -> None:
        if how == "call_soon":
            runner.loop.call_soon(done.set)
        elif how == "call_later":
            runner.loop.call_later(0.001, done.set)
        elif how == "create_task":
            runner.loop.create_task(work())
        else:
            runner.loop.stop()

    runner.port.on_command = schedule
    runner.thread.start()
    wait_for(lambda: runner.port.armed)
    runner.port.send(b"go")
    if how == "stop":
        runner.thread.join(TIMEOUT)
        assert not runner.thread.is_alive()
    else:
        assert done.wait(TIMEOUT)


def test_another_thread_can_schedule(runner: Runner) -> None:
    done = threading.Event()
    runner.thread.start()
    wait_for(lambda: runner.port.armed)
    runner.loop.call_soon_threadsafe(done.set)
    assert done.wait(TIMEOUT)


def test_a_port_that_is_always_busy_starves_nobody(runner: Runner) -> None:
    pipe = os.pipe()
    ran: dict[str, threading.Event] = {
        name: threading.Event() for name in ("timer", "thread", "descriptor", "coroutine")
    }

    async def work() -> None:
        for _ in range(10):
            await asyncio.sleep(0.001)
        ran["coroutine"].set()

    runner.port.on_command = runner.port.commands.append
    runner.port.commands.append(b"for ever")
    runner.port.poll = lambda: True  # type: ignore[method-assign]
    runner.loop.call_later(0.01, ran["timer"].set)
    runner.loop.add_reader(pipe[0], ran["descriptor"].set)
    runner.loop.create_task(work())
    runner.thread.start()
    os.write(pipe[1], b"x")
    runner.loop.call_soon_threadsafe(ran["thread"].set)
    for event in ran.values():
        assert event.wait(TIMEOUT)
    runner.stop()
    for fd in pipe:
        os.close(fd)


def test_between_two_steps_of_the_background_commands_are_served(runner: Runner) -> None:
    seen: list[int] = []

    def step() -> None:
        seen.append(len(runner.port.served))
        runner.port.commands.append(b"x")
        if len(seen) < 100:
            runner.loop.call_soon(step)

    runner.loop.call_soon(step)
    runner.thread.start()
    wait_for(lambda: len(seen) == 100)
    assert seen == list(range(100))


def test_a_timer_wakes_a_sleeping_loop_in_time(runner: Runner) -> None:
    done = threading.Event()
    start = time.monotonic()
    runner.loop.call_later(0.05, done.set)
    runner.thread.start()
    assert done.wait(TIMEOUT)
    assert time.monotonic() - start >= 0.05


def test_an_idle_loop_sleeps(runner: Runner) -> None:
    polls = 0
    poll = runner.port.poll

    def counted() -> bool:
        nonlocal polls
        polls += 1
        return poll()

    runner.port.poll = counted  # type: ignore[method-assign]
    runner.thread.start()
    wait_for(lambda: runner.port.armed)
    before = polls
    time.sleep(0.05)
    assert polls == before


def test_pollers_are_polled_with_the_port(runner: Runner) -> None:
    class Poller:
        def __init__(self) -> None:
            self.work: list[str] = []
            self.done: list[str] = []

        def poll(self) -> bool:
            found = bool(self.work)
            while self.work:
                self.done.append(self.work.pop(0))
            return found

        def arm(self) -> bool:
            return bool(self.work)

        def disarm(self) -> None:
            pass

    poller = Poller()
    runner.loop.add_poller(poller)
    runner.port.on_command = lambda command: poller.work.append(command.decode())
    runner.thread.start()
    wait_for(lambda: runner.port.armed)
    runner.port.send(b"rang")
    wait_for(lambda: poller.done == ["rang"])
    runner.loop.call_soon_threadsafe(runner.loop.remove_poller, poller)
    runner.loop.call_soon_threadsafe(runner.port.send, b"again")
    wait_for(lambda: len(runner.port.served) == 2)
    wait_for(lambda: runner.port.armed)
    assert poller.done == ["rang"]


def test_deferred_work_is_done_once_all_that_came_is_served(runner: Runner) -> None:
    seen: list[list[bytes]] = []

    def on_command(command: bytes) -> None:
        if command == b"1":
            runner.loop.defer(lambda: seen.append(list(runner.port.served)))

    runner.port.on_command = on_command
    runner.port.commands += [b"1", b"2", b"3"]
    runner.thread.start()
    wait_for(lambda: seen)
    assert seen == [[b"1", b"2", b"3"]]


def test_between_two_pieces_of_deferred_work_commands_are_served(runner: Runner) -> None:
    seen: list[int] = []

    def again() -> None:
        seen.append(len(runner.port.served))
        runner.port.commands.append(b"x")
        if len(seen) < 100:
            runner.loop.defer(again)

    runner.loop.call_soon(runner.loop.defer, again)
    runner.thread.start()
    wait_for(lambda: len(seen) == 100)
    assert seen == list(range(100))


class SilentPoller:
    """Work that comes without a wake-up."""

    def __init__(self) -> None:
        self.work: list[str] = []
        self.done: list[str] = []
        self.polls = 0

    def poll(self) -> bool:
        self.polls += 1
        found = bool(self.work)
        while self.work:
            self.done.append(self.work.pop(0))
        return found

    def arm(self) -> bool:
        return self.poll()

    def disarm(self) -> None:
        pass


def test_a_source_that_cannot_wake_the_loop_is_heard_all_the_same(runner: Runner) -> None:
    poller = SilentPoller()
    runner.loop.add_poller(poller, silent=True)
    runner.thread.start()
    for number in range(20):
        wait_for(lambda: runner.port.armed)
        poller.work.append(f"{number}")
        wait_for(lambda: not poller.work)
    assert poller.done == [f"{number}" for number in range(20)]


def test_a_napping_loop_serves_its_port_timers_and_threads(runner: Runner) -> None:
    runner.loop.add_poller(SilentPoller(), silent=True)
    timer, thread = threading.Event(), threading.Event()
    runner.loop.call_later(0.02, timer.set)
    runner.thread.start()
    assert timer.wait(TIMEOUT)
    wait_for(lambda: runner.port.armed)
    runner.loop.call_soon_threadsafe(thread.set)
    assert thread.wait(TIMEOUT)
    wait_for(lambda: runner.port.armed)
    runner.port.send(b"x")
    wait_for(lambda: runner.port.served)


def test_a_loop_without_such_a_source_sleeps_again(runner: Runner) -> None:
    poller = SilentPoller()
    runner.loop.add_poller(poller, silent=True)
    runner.thread.start()
    wait_for(lambda: poller.polls > 20)
    runner.loop.call_soon_threadsafe(runner.loop.remove_poller, poller)
    removed = threading.Event()
    runner.loop.call_soon_threadsafe(removed.set)
    assert removed.wait(TIMEOUT)
    wait_for(lambda: runner.port.armed)
    polls = poller.polls
    runner.port.send(b"x")
    wait_for(lambda: runner.port.served)
    assert poller.polls == polls


def test_shutting_down_lets_tasks_tidy_up() -> None:
    loop = CardLoop()
    tidied: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            tidied.append("yes")

    loop.create_task(work())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.shut_down()
    assert tidied == ["yes"]
    assert loop.is_closed()
