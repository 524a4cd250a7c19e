"""A second socket, for our commands: a client that has it need not tell them apart from replies to
its own, and may answer them on another thread."""

from __future__ import annotations

import socket
from collections.abc import Callable

from softcard.model.loop import CardLoop
from softcard.wire.messages import Messages, close_all
from softcard.wire.stream import HungUpError, MessageStream
from softcard.wire.vfio_user import FormatError


class Twin:
    """Our end of it, and the client's until that is passed.

    Args:
        max_size: bytes of the longest message that the client may send.
        loop: the card's loop, on whose thread this is used.
        failed: called on that thread when the client has closed it, or broken the protocol.

    Attributes:
        messages: what our commands go by.
        fd: the client's end.
    """

    def __init__(
        self,
        max_size: int,
        loop: CardLoop,
        failed: Callable[[HungUpError | FormatError], object],
    ) -> None:
        ours, self._theirs = socket.socketpair()
        self.fd = self._theirs.fileno()
        self._loop = loop
        self._failed = failed
        self._open = True
        self.messages = Messages(MessageStream(ours), max_size, self._wake)
        loop.add_reader(self.messages.fileno(), self._receive)

    def passed(self) -> None:
        """The client has its end."""
        self._theirs.close()

    def close(self) -> None:
        """The client's end, if it still is here; look after ours no longer."""
        if self._open:
            self._open = False
            self._theirs.close()
            self._loop.remove_reader(self.messages.fileno())

    def _wake(self) -> None:
        """A thread that waits for a reply has received a command."""
        try:
            self._loop.call_soon_threadsafe(self._receive)
        except RuntimeError:
            pass  # the loop is closed

    def _receive(self) -> None:
        """A late reply, for which nobody waits any more, or the end of the connection."""
        if not self._open:
            return
        try:
            self.messages.receive()
            message = self.messages.take()
            if message is not None:
                close_all(message.fds)
                raise FormatError(f"it sent command {message.command} where our replies come")
        except (HungUpError, FormatError) as error:
            self._failed(error)
