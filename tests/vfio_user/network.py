"""Two hosts on this machine: network namespaces with a wire between them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DELAY = Path(__file__).with_name("delay.py")
FAR, NEAR = "10.213.97.1", "10.213.97.2"


class Wire:
    """A network namespace for each end, and a pair of virtual interfaces.

    Attributes:
        far, near: the namespaces' names.
    """

    def __init__(self, name: str) -> None:
        self.far, self.near = f"{name}-far", f"{name}-near"
        self._made: list[str] = []

    def make(self) -> None:
        """Make all of it."""
        for space in (self.far, self.near):
            ip("netns", "add", space)
            self._made.append(space)
            ip("-n", space, "link", "set", "lo", "up")
        ends = ("veth0", "netns", self.far), ("veth0", "netns", self.near)
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for space, address in ((self.far, FAR), (self.near, NEAR)):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "veth0")
            ip("-n", space, "link", "set", "veth0", "up")

    def remove(self) -> None:
        """Remove what was made."""
        for space in self._made:
            ip("netns", "delete", space)

    def cut(self) -> None:
        """Pull the cable."""
        ip("-n", self.far, "link", "set", "veth0", "down")

    def mend(self) -> None:
        """Plug it in."""
        ip("-n", self.far, "link", "set", "veth0", "up")

    def delay(self, seconds: float) -> bool:
        """Let every packet take longer, each way; False where the kernel has no netem."""
        words = ("qdisc", "replace", "dev", "veth0", "root", "netem", "delay", f"{seconds}s")
        return all(
            subprocess.run(
                ["tc", "-n", space, *words, "limit", "100000"], capture_output=True, check=False
            ).returncode == 0
            for space in (self.far, self.near)
        )  # fmt: skip

    @contextmanager
    def longer(self, seconds: float, port: int) -> Iterator[str]:
        """The far end's port, later by so much each way; where it is to be reached."""
        if self.delay(seconds):
            yield FAR
            return
        proxy = subprocess.Popen(
            inside(self.near, sys.executable, str(DELAY), str(seconds),
                   f"127.0.0.1:{port}", f"{FAR}:{port}"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert proxy.stdout is not None
            assert proxy.stdout.readline() == "ready\n"
            yield "127.0.0.1"
        finally:
            proxy.kill()
            proxy.communicate()


def inside(space: str, *command: str) -> list[str]:
    """A command that runs in a namespace."""
    return ["ip", "netns", "exec", space, *command]


def ip(*words: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
