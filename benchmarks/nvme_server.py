"""Serve an NVMe card over vfio-user, for a client that measures it.

    python benchmarks/nvme_server.py SOCKET [--plain] [--polled] [--cpu N] [--size 256M]

It serves until it is interrupted. `--plain` takes the engine in Python, `--polled` lets the client
map the doorbells.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from softcard.bus.vfio_user import VfioUserServer
from softcard.cards.nvme import Nvme
from softcard.cards.nvme.engine import Engine
from softcard.model.options import Size


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--polled", action="store_true")
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--size", type=Size, default=Size("256M"))
    options = parser.parse_args()
    if options.plain:
        Nvme.engine = Engine
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    card = Nvme(size=options.size, polled_doorbells=options.polled)
    server = VfioUserServer(card, options.socket)
    if options.cpu is not None:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), [options.cpu])
    signal.sigwait([signal.SIGINT, signal.SIGTERM])
    server.stop()


if __name__ == "__main__":
    main()
