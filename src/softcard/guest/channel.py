"""The host's end of the agent: many commands at once over one byte stream."""

from __future__ import annotations

import marshal
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from softcard.errors import GuestError
from softcard.guest import frames

CHUNK = 1 << 16
INPUT_CHUNK = 4096
RESTARTED = "the guest has started anew, and with it all that ran there has ended"
GONE, STARTED_ANEW = -1, -2


class NoAnswerError(GuestError):
    """The guest has not answered in time."""


class Channel:
    """Speaks to the agent.

    Args:
        stream: a stream socket whose other end is the agent's.
        why_gone: says why the guest no longer answers, for the `GuestError` that callers get.
        greeting: what the agent says first whenever it starts, and wants to hear before all else;
            needed where the stream outlives the agent.
    """

    def __init__(
        self, stream: socket.socket, why_gone: Callable[[], str], greeting: bytes = b""
    ) -> None:
        self._stream = stream
        self._why_gone = why_gone
        self._replies: dict[int, queue.SimpleQueue[tuple[int, bytes]]] = {}
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._taken = threading.Condition()
        self._on_the_way = 0
        self._next = 1
        self._gone = False
        self._greeting = greeting
        self._life = 0
        self._starts = 0
        self._started = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="guest agent", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up; a call that still waits gets a `GuestError`."""
        try:
            self._stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._stream.close()

    def _read(self) -> None:
        reader = frames.FrameReader(self._greeting)
        try:
            while data := self._stream.recv(CHUNK):
                received = reader.feed(data)
                if reader.greeted != self._life:
                    self._start_anew(reader.greeted)
                for kind, ident, payload in received:
                    if kind == frames.TAKEN:
                        with self._taken:
                            self._on_the_way -= struct.unpack("<I", payload)[0]
                            self._taken.notify()
                    elif kind == frames.READY:
                        with self._started:
                            self._starts += 1
                            self._started.notify_all()
                    elif (waiting := self._replies.get(ident)) is not None:
                        waiting.put((kind, payload))
        except (OSError, ValueError):
            pass
        self._tell_all(GONE)
        with self._taken:
            self._taken.notify_all()
        with self._started:
            self._started.notify_all()

    def _tell_all(self, what: int) -> None:
        with self._lock:
            self._gone = what == GONE
            for waiting in self._replies.values():
                waiting.put((what, b""))

    def _start_anew(self, life: int) -> None:
        """The agent has greeted: it knows of nothing that was said before."""
        with self._taken:
            self._life = life
            self._on_the_way = 0
            self._taken.notify_all()
        self._tell_all(STARTED_ANEW)
        with self._write_lock:
            self._stream.sendall(self._greeting)

    @property
    def starts(self) -> int:
        """How often the agent has become ready."""
        return self._starts

    def wait_until_ready(self, timeout: float, *, start: int = 1) -> bool:
        """Wait until the agent has become ready `start` times, or has hung up.

        Returns:
            Whether that was within `timeout` seconds.
        """
        with self._started:
            return self._started.wait_for(lambda: self._gone or self._starts >= start, timeout)

    @property
    def gone(self) -> bool:
        """Whether the agent has hung up."""
        return self._gone

    def open(self, kind: int, request: Mapping[str, Any]) -> Conversation:
        """Send a request whose replies the result receives.

        Raises:
            GuestError: the guest has ended.
        """
        with self._lock:
            ident = self._next
            self._next += 1
            replies: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
            self._replies[ident] = replies
            gone = self._gone
            conversation = Conversation(self, ident, replies, self._life)
        if gone:
            conversation.close()
            raise GuestError(self._why_gone())
        conversation.send(kind, marshal.dumps(dict(request)))
        return conversation

    def send(self, kind: int, ident: int, payload: bytes, life: int) -> None:
        """Send one frame; waits while the agent has not taken what was sent before.

        Raises:
            GuestError: the agent has ended, or `life` is not the one that it is living.
        """
        frame = frames.pack(kind, ident, payload)
        try:
            with self._write_lock:
                for start in range(0, len(frame), frames.WINDOW):
                    self._send_piece(frame[start : start + frames.WINDOW], life)
        except OSError:
            raise GuestError(self._why_gone()) from None

    def _send_piece(self, piece: bytes, life: int) -> None:
        with self._taken:
            while (
                self._on_the_way + len(piece) > frames.WINDOW
                and not self._gone
                and self._life == life
            ):
                self._taken.wait()
            if self._life != life:
                raise GuestError(RESTARTED)
            self._on_the_way += len(piece)
        self._stream.sendall(piece)

    def forget(self, ident: int) -> None:
        """Replies with this id are of no interest any more."""
        with self._lock:
            self._replies.pop(ident, None)

    def why_gone(self) -> str:
        """Why the guest does not answer."""
        return self._why_gone()

    def call(self, name: str, timeout: float, **request: Any) -> None:
        """A small service of the agent.

        Raises:
            NoAnswerError: the guest has not answered in time.
            GuestError: it failed, or the guest has ended.
        """
        with self.open(frames.CALL, {"call": name, **request}) as conversation:
            try:
                kind, payload = conversation.receive(timeout)
            except TimeoutError as error:
                raise NoAnswerError(str(error)) from None
            if kind == frames.FAILURE:
                about = request.get("path", "")
                raise GuestError(f"{name} {about} in the guest failed: {payload.decode()}")

    def tell(self, name: str) -> None:
        """Ask for a service of the agent that it does not live to answer."""
        self.open(frames.CALL, {"call": name}).close()


class Conversation:
    """One request and its replies."""

    def __init__(
        self,
        channel: Channel,
        ident: int,
        replies: queue.SimpleQueue[tuple[int, bytes]],
        life: int,
    ) -> None:
        self._channel = channel
        self._life = life
        self.ident = ident
        self._replies = replies

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No more replies are wanted."""
        self._channel.forget(self.ident)

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame that belongs to this conversation."""
        self._channel.send(kind, self.ident, payload, self._life)

    def receive(self, timeout: float | None) -> tuple[int, bytes]:
        """The next reply.

        Raises:
            TimeoutError: none has come within `timeout` seconds.
            GuestError: the guest has ended.
        """
        try:
            kind, payload = self._replies.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"the guest has not answered for {timeout:g} s") from None
        if kind == GONE:
            raise GuestError(self._channel.why_gone())
        if kind == STARTED_ANEW:
            raise GuestError(RESTARTED)
        return kind, payload


class Process:
    """A command that runs in the guest."""

    def __init__(
        self,
        channel: Channel,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        terminal: tuple[int, int] | None = None,
    ) -> None:
        self.argv = list(argv)
        self.status: int | None = None
        self._conversation = channel.open(
            frames.RUN,
            {"argv": self.argv, "env": dict(env), "cwd": cwd, "terminal": terminal},
        )

    def write(self, data: bytes) -> None:
        """Give it input."""
        for start in range(0, len(data), INPUT_CHUNK):
            self._conversation.send(frames.INPUT, data[start : start + INPUT_CHUNK])

    def end_input(self) -> None:
        """It has had all its input."""
        self._conversation.send(frames.END_OF_INPUT)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal a new size."""
        self._conversation.send(frames.RESIZE, marshal.dumps([rows, columns]))

    def kill(self, number: int) -> None:
        """Send a signal to it and its children."""
        self._conversation.send(frames.SIGNAL, bytes([number]))

    def wait(
        self,
        timeout: float | None = None,
        output: Callable[[bytes], None] = lambda data: None,
        errors: Callable[[bytes], None] = lambda data: None,
    ) -> int:
        """Wait for the end; `output` and `errors` get what it writes, as it comes.

        Returns:
            The exit status; 128 plus the signal's number where a signal ended it.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds; it is still running.
            GuestError: the guest has ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.status is None:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            kind, payload = self._conversation.receive(left)
            if kind == frames.OUTPUT:
                output(payload)
            elif kind == frames.ERROR_OUTPUT:
                errors(payload)
            elif kind == frames.EXIT:
                self.status = struct.unpack("<i", payload)[0]
                self._conversation.close()
        return self.status


def terminal_size(fd: int) -> tuple[int, int]:
    """Rows and columns of a terminal."""
    size = os.get_terminal_size(fd)
    return size.lines, size.columns
