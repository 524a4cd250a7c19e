"""The loop that a card's code runs on: asyncio's, with the bus served inside its selector.

Register accesses are the hot path: they are handled where asyncio would wait, so that they cost
none of its bookkeeping, while timers, file descriptors and coroutines are plain asyncio. Before it
sleeps, the loop polls the bus for a while when that has paid recently (the idea of the kernel's
halt polling): a wake-up through the operating system costs more than a short access.

Where a source of work cannot wake the loop, as memory that a driver's processor stores to, the loop
does not sleep but naps, the longer the longer nothing has come.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import select
import selectors
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

# How long polling may last: so many times what asking the operating system takes, which is more
# where the processor is emulated, and all who take part are slower then.
SPIN_CALLS = 100
SPIN_LEAST, SPIN_MOST = 100e-6, 1e-3
SPIN_MIN = 10e-6
HOLD_OFF = 64
FAIR_SHARE = 2e-3
NAP_MIN, NAP_MAX = 50e-6, 1e-3
FD_SETSIZE = 1024


class Poller(Protocol):
    """A source of work that can be polled, and can wake the loop when it is armed."""

    def poll(self) -> bool:
        """Do what has come, without waiting; whether there was anything."""

    def arm(self) -> bool:
        """Ask to be woken from now on; True when something has come meanwhile."""

    def disarm(self) -> None:
        """No need to be woken: the loop polls again."""


class Port(Poller, Protocol):
    """A bus's end of the loop: a poller with a file descriptor that wakes it."""

    def fileno(self) -> int:
        """Readable when armed and something has come."""

    def receive(self) -> None:
        """Take what made the file descriptor readable, and serve it."""


class CardLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop that serves a bus's ports and a card's pollers."""

    def __init__(self) -> None:
        self._ports = _PortSelector()
        super().__init__(self._ports)

    def add_port(self, port: Port) -> None:
        """Serve this port of a bus."""
        self._ports.add_port(port)

    def remove_port(self, port: Port) -> None:
        """Serve it no longer; nothing happens where it is not served."""
        self._ports.remove_port(port)

    def add_poller(self, poller: Poller, *, silent: bool = False) -> None:
        """Poll this source whenever the bus is polled.

        Args:
            poller: the source.
            silent: it cannot wake the loop, which therefore never sleeps for long.
        """
        self._ports.pollers = (*self._ports.pollers, poller)
        if silent:
            self._ports.silent = (*self._ports.silent, poller)

    def remove_poller(self, poller: Poller) -> None:
        """Poll it no longer."""
        ports = self._ports
        ports.pollers = tuple(p for p in ports.pollers if p is not poller)
        ports.silent = tuple(p for p in ports.silent if p is not poller)

    def defer(self, call: Callable[[], object]) -> None:
        """Call `call()` once the bus has handed over all accesses that it has at hand.

        For work that is cheaper for many accesses together than for each. A bus with a loop that
        does not wait in `select` calls `run_deferred` after its accesses. To be called on the
        loop's own thread; `call` must not raise.
        """
        self._ports.deferred.append(call)

    def run_deferred(self) -> None:
        """Make the calls that wait; those that they defer in turn have to wait again."""
        self._ports.run_deferred()

    # A handler that runs inside the selector may schedule work at any depth of asyncio; these
    # are where all of it passes, and the selector must then return to asyncio.

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """See asyncio."""
        self._ports.scheduled = True
        return super().call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        self._ports.scheduled = True
        return super().call_at(when, callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """See asyncio."""
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self._ports.scheduled = True
        return handle

    def stop(self) -> None:
        """See asyncio."""
        self._ports.scheduled = True
        super().stop()

    def shut_down(self) -> None:
        """Cancel every task, let it finish, and close; the loop must not be running."""
        self._ports.remove_ports()
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.close()


class _PortSelector(selectors.EpollSelector):
    """An epoll selector that serves ports and pollers while asyncio waits in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduled = False
        self._pollers: tuple[Poller, ...] = ()
        self.silent: tuple[Poller, ...] = ()
        self.deferred: list[Callable[[], object]] = []
        self._ports: dict[int, Port] = {}
        self._sources: tuple[Poller, ...] = ()
        # Ports are not asyncio's, whose selector does much for each event.
        self._bell = select.epoll()
        self._bell.register(self.fileno(), select.EPOLLIN)
        self._window = 0.0
        self._hold_off = 0
        # On a single processor polling would only keep the guest from working; where both are
        # confined to the same one of many, `_learn` finds out.
        self._longest = self._longest_spin() if (os.cpu_count() or 1) > 1 else 0.0

    def _longest_spin(self) -> float:
        times = [time.monotonic()]
        for _ in range(5):
            self._bell.poll(0)
            times.append(time.monotonic())
        call = min(after - before for before, after in itertools.pairwise(times))
        return min(max(SPIN_CALLS * call, SPIN_LEAST), SPIN_MOST)

    def add_port(self, port: Port) -> None:
        self._bell.register(port.fileno(), select.EPOLLIN)
        self._ports[port.fileno()] = port
        self._order()

    def remove_port(self, port: Port) -> None:
        if port in self._ports.values():
            del self._ports[port.fileno()]
            self._bell.unregister(port.fileno())
            self._order()

    def remove_ports(self) -> None:
        for port in list(self._ports.values()):
            self.remove_port(port)

    def close(self) -> None:
        self._bell.close()
        super().close()

    @property
    def pollers(self) -> tuple[Poller, ...]:
        return self._pollers

    @pollers.setter
    def pollers(self, pollers: tuple[Poller, ...]) -> None:
        self._pollers = pollers
        self._order()

    def _order(self) -> None:
        self._sources = (*self._ports.values(), *self._pollers)

    def run_deferred(self) -> None:
        calls, self.deferred = self.deferred, []
        for call in calls:
            call()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.scheduled = False
        if not self._sources and not self.deferred:
            return super().select(timeout)
        start = time.monotonic()
        deadline = None if timeout is None else start + max(timeout, 0.0)
        fair_until = start + FAIR_SHARE
        while True:
            now = self._spin(deadline, fair_until)
            if self.scheduled or now >= fair_until or (deadline is not None and now >= deadline):
                return self._take(self._bell.poll(0))
            if self._arm():
                self._disarm()
                continue
            if self.silent:
                rung = self._nap(deadline)
            else:
                rung = self._bell.poll(None if deadline is None else deadline - now)
            self._disarm()
            woken = time.monotonic()
            others = self._take(rung)
            self._learn(woken - now)
            if others or self.scheduled:
                return others
            fair_until = woken + FAIR_SHARE

    def _spin(self, deadline: float | None, fair_until: float) -> float:
        """Poll until nothing has come for as long as polling pays; returns the time."""
        now = time.monotonic()
        idle_after = now + self._window
        limit = fair_until if deadline is None else min(deadline, fair_until)
        while True:
            busy = False
            for source in self._sources:
                if source.poll():
                    busy = True
            if self.deferred:
                self.run_deferred()
                busy = True
            if self.scheduled:
                return time.monotonic()
            now = time.monotonic()
            if busy:
                idle_after = now + self._window
            elif now >= idle_after:
                return now
            if now >= limit:
                return now

    def _nap(self, deadline: float | None) -> list[tuple[int, int]]:
        """Sleep in pieces until something has come, be it from who cannot wake us."""
        nap = NAP_MIN
        while True:
            left = math.inf if deadline is None else max(deadline - time.monotonic(), 0.0)
            rung = self._doze(min(nap, left))
            if rung or left <= nap or self._heard():
                return rung
            nap = min(2 * nap, NAP_MAX)

    def _doze(self, seconds: float) -> list[tuple[int, int]]:
        """epoll counts milliseconds; but its descriptor can be waited for itself."""
        fd = self._bell.fileno()
        if fd >= FD_SETSIZE:
            return self._bell.poll(seconds)
        select.select([fd], [], [], seconds)
        return self._bell.poll(0)

    def _heard(self) -> bool:
        """Whether a source that cannot wake us had something."""
        found = False
        for poller in self.silent:
            found = poller.poll() or found
        return found

    def _learn(self, slept: float) -> None:
        """A short sleep would have been cheaper as a spin; a long one made it a waste."""
        if self._hold_off:
            self._hold_off -= 1
        elif slept >= self._longest:
            self._window = self._window / 2 if self._window > SPIN_MIN else 0.0
        elif self._window < self._longest:
            self._window = min(max(self._window * 2, SPIN_MIN), self._longest)
        else:
            # Polled long, and yet it came as soon as we slept: the guest waits for this very
            # processor.
            self._window = 0.0
            self._hold_off = HOLD_OFF

    def _arm(self) -> bool:
        ready = False
        for source in self._sources:
            ready = source.arm() or ready
        return ready

    def _disarm(self) -> None:
        for source in self._sources:
            source.disarm()

    def _take(self, rung: list[tuple[int, int]]) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve the ports among those that rang; returns asyncio's events."""
        others = False
        for fd, _ in rung:
            port = self._ports.get(fd)
            if port is None:
                others = True
            else:
                port.receive()
        return super().select(0) if others else []
