"""The machine itself as the guest: what is plugged into the host bus is on its own PCI bus."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from softcard.errors import GuestError
from softcard.guest.channel import Channel
from softcard.guest.guest import Guest
from softcard.guest.machine_log import MachineLog

AGENT = Path(__file__).resolve().with_name("machine_agent.py")
START_TIMEOUT = 30.0
END_TIMEOUT = 10.0


class MachineGuest(Guest):
    """Runs commands as ordinary processes of this machine; a context manager that ends those.

    They run as this user, with this process's environment and in its folder. The log has what the
    kernel says from now on, where this user may read that.

    Nothing boots here. The commands are children of a small process of its own, not of this one:
    a program that is started from a card's own disk would otherwise wait for a card that cannot
    answer, since Python does nothing else while it starts a process.

    Args:
        echo: called with each line of the kernel log as it comes.

    Raises:
        GuestError: no process can be started.
    """

    log: MachineLog

    def __init__(self, *, echo: Callable[[str], None] | None = None) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(AGENT), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                # Ctrl-C is for this process, which then ends the commands.
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise GuestError(f"cannot start {sys.executable}: {error.strerror}") from None
        finally:
            theirs.close()
        super().__init__(
            Channel(ours, self._why_gone), MachineLog(echo),
            environment=dict(os.environ), cwd=str(Path.cwd()),
        )  # fmt: skip
        if not self._channel.wait_until_ready(START_TIMEOUT) or self._channel.gone:
            why = self._why_gone()
            self.close()
            raise GuestError(why)

    def _why_gone(self) -> str:
        return (
            f"the process that starts commands on this machine ({self.process.pid}) has ended: "
            "this is the end of what it ran"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the commands that still run; the machine goes on."""
        self._channel.close()
        try:
            self.process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def settle_log(self, timeout: float) -> None:
        """See `Guest`."""
        try:
            self.log.catch_up(timeout)
        except TimeoutError as error:
            raise GuestError(str(error)) from None
