"""Clients that come, work and vanish at any moment, and servers that stay as they were.

For longer: python -m tests.vfio_user.test_soak SECONDS
"""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.unit.fake_vfio_client import PAGE, TIMEOUT, Board, FakeClient, Plugs, descriptors
from tests.vfio_user.soak_client import AT, MARK, session

from softcard import DmaError
from softcard.bus.vfio_user import VfioUserServer

SECONDS = 20.0
SERVERS = 3
# What a heap may grow by that gives back not every page, in KiB.
ALLOWED_MEMORY = 3000
ALLOWED_OBJECTS = 200


@dataclass(frozen=True)
class Held:
    """What this process has; memory in KiB."""

    descriptors: int
    threads: int
    objects: int
    memory: int


def held() -> Held:
    """Now, with no client."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    memory = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return Held(descriptors(), threading.active_count(), len(gc.get_objects()), int(memory))


class Served:
    """One server, with a client process that is killed and another one in this process."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.card = Board()
        self.card.action = self._copy
        self.plugs = Plugs()
        self.server = VfioUserServer(self.card, folder / f"card{seed}", changed=self.plugs)
        self.path = self.server.paths[0]
        self.random = random.Random(seed)
        self.sessions = self.kills = 0

    def _copy(self) -> None:
        try:
            self.card.dma.write(AT + PAGE, self.card.dma.read(AT, len(MARK)))
        except DmaError:
            pass  # the client has gone in the middle of it

    def work(self, until: float) -> None:
        """Clients, one after the other and two at a time, until then."""
        while time.monotonic() < until:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.vfio_user.soak_client",
                    str(self.path), str(self.random.getrandbits(32)),
                ]
            )  # fmt: skip
            before = self.plugs.count
            # It and this thread's clients take turns.
            for _ in range(self.random.randrange(2, 8)):
                session(self.path, self.random, self.random.randrange(100))
                self.sessions += 1
            while self.plugs.count < before + 4 and process.poll() is None:
                with FakeClient(self.path):
                    self.sessions += 1
            assert process.poll() is None, "a client has found a fault"
            process.send_signal(signal.SIGKILL)
            process.wait(TIMEOUT)
            self.kills += 1
        with FakeClient(self.path) as client:
            client.enable()
        self.plugs.wait(connected=False)


def soak(seconds: float) -> tuple[Held, Held, list[Served]]:
    """Let clients work for so long; what was held after a third of it, and in the end."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        everybody = [Served(Path(folder), seed) for seed in range(SERVERS)]
        for served in everybody:
            stack.callback(served.server.stop)
        states = []
        for part in (seconds / 3, seconds * 2 / 3):
            until = time.monotonic() + part
            errors: list[BaseException] = []
            threads = [
                threading.Thread(target=_guarded, args=(served, until, errors))
                for served in everybody
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if errors:
                raise errors[0]
            states.append(held())
        assert not any(served.card.endpoint.error_count for served in everybody)
    return states[0], states[1], everybody


def _guarded(served: Served, until: float, errors: list[BaseException]) -> None:
    try:
        served.work(until)
    except BaseException as error:
        errors.append(error)


def check(before: Held, after: Held) -> None:
    """Fail where something has grown."""
    assert after.descriptors == before.descriptors
    assert after.threads == before.threads
    assert after.objects <= before.objects + ALLOWED_OBJECTS
    assert after.memory <= before.memory + ALLOWED_MEMORY


def test_clients_that_vanish_leave_nothing_behind() -> None:
    before, after, everybody = soak(SECONDS)
    assert all(served.kills for served in everybody)
    check(before, after)


def main() -> None:
    """Soak for as long as the command line says, and print what came of it."""
    before, after, everybody = soak(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS)
    for served in everybody:
        print(f"{served.plugs.count} plugs, {served.sessions} sessions, {served.kills} kills")
    print(f"after a third: {before}")
    print(f"in the end:    {after}")
    check(before, after)


if __name__ == "__main__":
    main()
