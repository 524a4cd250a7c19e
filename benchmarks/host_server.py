"""Put an NVMe card on this machine's own bus, for whoever measures it.

    python benchmarks/host_server.py [--plain] [--shadow] [--size 256M]

It is there when a line is printed, and until standard input ends. `--plain` takes the engine in
Python.
"""

from __future__ import annotations

import argparse
import sys

from softcard.bus.host import HostBus
from softcard.cards.nvme import Nvme
from softcard.cards.nvme.engine import Engine
from softcard.model.options import Size


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--size", type=Size, default=Size("256M"))
    options = parser.parse_args()
    if options.plain:
        Nvme.engine = Engine
    with HostBus() as bus:
        slot = bus.plug(Nvme(size=options.size))
        print(slot.address, flush=True)
        sys.stdin.read()
        slot.unplug()


if __name__ == "__main__":
    main()
