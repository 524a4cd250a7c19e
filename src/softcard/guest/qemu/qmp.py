"""QEMU's monitor: commands and events, for callers that are not coroutines."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from softcard.errors import GuestError

TIMEOUT = 30.0
T = TypeVar("T")

# What ends a connection is told as an error of the call that it ends.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Monitor:
    """Speaks to QEMU over a connected socket; a thread of its own receives.

    Args:
        stream: QEMU's other end is that of a monitor in control mode.

    Raises:
        GuestError: nobody answers there.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("softcard")
        self._waiting: list[tuple[str, Callable[[Any], bool], threading.Event]] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop.run_forever, name="QMP", daemon=True)
        self._thread.start()
        try:
            self._call(self._client.connect(stream), TIMEOUT)
            self._listening = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Hang up."""
        self._listening.cancel()
        try:
            self._call(self._client.disconnect(), TIMEOUT)
        except GuestError:
            pass  # QEMU has gone before
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def execute(self, command: str, **arguments: object) -> object:
        """Give a command, and return what it gives back.

        Raises:
            GuestError: QEMU refuses, does not answer in time, or has gone.
        """
        return self._call(self._client.execute(command, arguments), TIMEOUT)

    @contextmanager
    def expecting(
        self, name: str, wanted: Callable[[Any], bool] = lambda data: True
    ) -> Iterator[threading.Event]:
        """Gives what is set once an event with this name has come whose data are `wanted`."""
        happened = threading.Event()
        entry = (name, wanted, happened)
        with self._lock:
            self._waiting.append(entry)
        try:
            yield happened
        finally:
            with self._lock:
                self._waiting.remove(entry)

    async def _listen(self) -> None:
        with self._client.listener() as listener:
            async for event in listener:
                with self._lock:
                    for name, wanted, happened in self._waiting:
                        if name == event["event"] and wanted(event.get("data", {})):
                            happened.set()

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise GuestError(f"QEMU has not answered for {timeout:g} s") from None
        except ExecuteError as error:
            raise GuestError(f"QEMU refuses: {error}") from None
        except (ConnectError, ExecInterruptedError, QMPError, EOFError, OSError) as error:
            raise GuestError(f"QEMU does not answer: {error}") from None
