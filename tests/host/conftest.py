"""What the tests of the host bus share: a stock Linux in QEMU that serves cards to itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from softcard.guest.guest import Result
from softcard.guest.kernel.cache import cache_folder
from softcard.guest.qemu import QemuBus, QemuGuest, StockKernel
from softcard.guest.qemu.headers import build_stock_module
from softcard.guest.qemu.kernel import need_kernel
from softcard.testing.plugin import ECHO, WATCH

ROOT = Path(__file__).parents[2]
MEMORY = 1 << 30
# A processor that serves, and one that waits.
PROCESSORS = 2
LIMIT = 300.0

Modules = Callable[[str], str]
Inside = Callable[..., Result]


@pytest.fixture(scope="session")
def kernel() -> StockKernel:
    return need_kernel()


@pytest.fixture(scope="session")
def modules(kernel: StockKernel) -> Modules:
    """Builds the module in a folder of the repository; where the guest sees it. /tmp is its own."""
    built: dict[str, str] = {}

    def build(name: str) -> str:
        if name not in built:
            target = cache_folder("qemu") / "modules" / kernel.release / name.replace("/", "-")
            built[name] = str(build_stock_module(kernel, ROOT / name, target))
        return built[name]

    return build


@pytest.fixture(scope="session")
def machine(
    request: pytest.FixtureRequest, kernel: StockKernel, modules: Modules
) -> Iterator[QemuGuest]:
    module = modules("kernel")
    with QemuBus(
        kernel=kernel, memory=MEMORY, processors=PROCESSORS,
        echo=request.config.stash.get(ECHO, None),
    ) as bus:  # fmt: skip
        guest = bus.boot()
        guest.load_module(Path(module))
        yield guest


@pytest.fixture
def guest(request: pytest.FixtureRequest, machine: QemuGuest) -> QemuGuest:
    """A machine with the module loaded, which other tests have used before."""
    request.node.stash[WATCH].guests.append((machine, machine.log.position()))
    return machine


@pytest.fixture
def inside(guest: QemuGuest) -> Inside:
    """Runs a program of `inside/` in the guest."""

    def run(name: str, *arguments: str, check: bool = True) -> Result:
        return guest.run(
            [sys.executable, "-m", f"tests.host.inside.{name}", *arguments],
            env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=str(ROOT), check=check, timeout=LIMIT,
        )  # fmt: skip

    return run
