"""Slow work on the store, on a thread of its own, so that no register access waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from softcard.backend.store import BlockStore
from softcard.model.function import Function

Work = Callable[[], object]
Done = Callable[[BaseException | None], object]


class Background:
    """Runs one piece of work after the other, in the order of submission.

    `done` is called on the card's thread with the exception that the work raised, or None. The
    order is a promise: what discards a namespace's blocks is over before the blocks are given to
    another one. Flushes that come while one waits are served by that one.

    Args:
        function: the card; its loop is where `done` is called.
        store: what is flushed.
    """

    def __init__(self, function: Function, store: BlockStore) -> None:
        self._function = function
        self._store = store
        self._executor: ThreadPoolExecutor | None = None
        self._running: set[Future[object]] = set()
        self._waiting_flush: list[Done] | None = None
        self._when_idle: list[Callable[[], object]] = []

    def submit(self, work: Work, done: Done) -> None:
        """Run `work` on the thread, then call `done`."""
        # A flush submitted earlier does not cover what this work writes.
        self._waiting_flush = None
        self._start(work, done)

    def flush(self, done: Done) -> None:
        """Flush the store, then call `done`."""
        waiting = self._waiting_flush
        if waiting is not None:
            waiting.append(done)
            return
        waiting = self._waiting_flush = [done]

        def work() -> None:
            # From here on a write may come too late for this flush.
            if self._waiting_flush is waiting:
                self._waiting_flush = None
            self._store.flush()

        def all_done(error: BaseException | None) -> None:
            for call in waiting:
                call(error)

        self._start(work, all_done)

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call `call` when nothing is running: at once, or on the card's thread later."""
        if self._running:
            self._when_idle.append(call)
        else:
            call()

    def stop(self) -> None:
        """Wait for what is running, and forget what was to be called then."""
        self._when_idle.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
        self._running.clear()
        self._waiting_flush = None

    def _start(self, work: Work, done: Done) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="nvme")
        loop = self._function.loop
        future = self._executor.submit(work)
        self._running.add(future)
        finished = partial(self._function.endpoint.guarded, "disk access", self._finished)
        future.add_done_callback(
            lambda future: _try(loop.call_soon_threadsafe, finished, future, done)
        )

    def _finished(self, future: Future[object], done: Done) -> None:
        if future not in self._running:
            return
        self._running.remove(future)
        done(future.exception())
        while self._when_idle and not self._running:
            self._when_idle.pop(0)()


def _try(call: Callable[..., object], *args: object) -> None:
    """The loop may have been closed meanwhile, and with it everybody who waits for the result."""
    try:
        call(*args)
    except RuntimeError:
        pass
