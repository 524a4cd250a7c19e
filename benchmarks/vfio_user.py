"""A register read over a vfio-user socket, by a client in C; no virtual machine.

    python -m benchmarks.vfio_user [SOCKET REGION]

measures as well what listens at SOCKET, another server of any kind, round by round in the same run.
The client has one processor and our server the other; so should the other server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.card import BenchCard
from benchmarks.result import Result, show, summed_up

from softcard.bus.vfio_user import VfioUserServer

SOURCE = Path(__file__).with_suffix(".c")
ROUNDS, COUNT = 40, 2000
BAR = 0
REGISTERS = {
    "register read over the socket, no hook": "plain",
    "register read over the socket, answered by a method": "hooked",
}


def measure(peer: tuple[str, str] | None = None) -> list[Result]:
    """Our server, and the one at the socket and with the region of `peer`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return []
    first, *others = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        client, path = Path(folder) / "client", Path(folder) / "card"
        subprocess.run([compiler, "-O2", "-o", client, SOURCE], check=True)
        arguments = [str(ROUNDS), str(COUNT)]
        for register in REGISTERS.values():
            # A server has one client, so each register has a server.
            offset = getattr(BenchCard.bar0, register).offset
            arguments += [f"{path}-{register}", str(BAR), str(offset)]
        if peer is not None:
            arguments += [*peer, "0"]
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.vfio_user", "--serve", path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            os.sched_setaffinity(server.pid, others or {first})
            server.stdout.readline()
            output = subprocess.run(
                [client, *arguments], stdout=subprocess.PIPE, check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {first}),
            ).stdout  # fmt: skip
        finally:
            server.stdin.close()
            server.wait()
    names = [*REGISTERS, *([f"the same of {peer[0]}"] if peer else [])]
    return [
        summed_up("vfio-user", name, "µs", [taken["p50"] / 1000 for taken in rounds])
        for name, rounds in zip(names, json.loads(output), strict=True)
    ]


def _serve(path: str) -> None:
    """Serve a card for each register until standard input ends."""
    servers = [
        VfioUserServer(BenchCard(), Path(f"{path}-{register}")) for register in REGISTERS.values()
    ]
    print("ready", flush=True)
    sys.stdin.read()
    for server in servers:
        server.stop()


def main() -> None:
    """Measure, and print a table."""
    match sys.argv[1:]:
        case ["--serve", path]:
            _serve(path)
        case [peer, region]:
            show(measure((peer, region)))
        case []:
            show(measure())
        case _:
            sys.exit("usage: python -m benchmarks.vfio_user [SOCKET REGION]")


if __name__ == "__main__":
    main()
