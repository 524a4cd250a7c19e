"""The agent of the machine itself: an ordinary process that runs commands for softcard.

`python3 machine_agent.py DESCRIPTOR`, which is a socket. It is no init: it makes no root, loads
nothing by itself, and when softcard hangs up, it ends the commands that still run, and itself.
Standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

import agent  # type: ignore[import-not-found]  # beside this file, not the package

PATIENCE = 2.0
STEP = 0.01


def end_commands(worker: agent.Agent) -> None:
    """End what still runs, also what does not want to."""
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
        tell_all(worker, number)
    deadline = time.monotonic() + PATIENCE
    while worker.commands and time.monotonic() < deadline:
        time.sleep(STEP)
        collect(worker)
    tell_all(worker, signal.SIGKILL)


def tell_all(worker: agent.Agent, number: int) -> None:
    """A signal to every command and its children."""
    for command in worker.commands.values():
        try:
            os.killpg(command.pid, number)
        except OSError:
            pass  # it has gone, or has become somebody else's


def collect(worker: agent.Agent) -> None:
    """Forget the commands that have ended; nobody wants to hear of them any more."""
    for ident, command in list(worker.commands.items()):
        if os.waitpid(command.pid, os.WNOHANG)[0]:
            del worker.commands[ident]


def main() -> None:
    """Serve until softcard hangs up."""
    worker = agent.Agent(int(sys.argv[1]), b"", loads_modules=False)
    try:
        worker.serve()
    except OSError:
        pass  # killed, it hangs up while something is on its way
    finally:
        end_commands(worker)


if __name__ == "__main__":
    main()
