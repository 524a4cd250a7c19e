"""What the tests of the host bus share: a Linux in QEMU that serves cards to itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from tests.host.debug_kernel import debug_kernel

from softcard.guest.guest import Result
from softcard.guest.qemu import QemuBus, QemuGuest, StockKernel
from softcard.guest.qemu.get import fetch_kernel
from softcard.guest.qemu.headers import build_stock_module
from softcard.testing.plugin import ECHO, WATCH

ROOT = Path(__file__).parents[2]
DEFAULT_KERNELS = "6.12"
DEBUG = "debug"
MEMORY = 1 << 30
# A processor that serves, and one that waits.
PROCESSORS = 2
# Without it, as on most machines, page tables have four levels.
FOUR_LEVELS, FIVE_LEVELS = "max,la57=off", "max"
LIMIT = 300.0
# So many times as long takes what runs in the kernel that finds faults.
SLOWNESS = 4

Modules = Callable[[str], str]


@dataclass(frozen=True)
class Lengths:
    """How long the hard tests are.

    Attributes:
        calls: of noise.
        writes: in a burst.
        injections: of interrupts.
        cycles: of plugging in and pulling.
        seed: for what is drawn at random.
    """

    calls: int
    writes: int
    injections: int
    cycles: int
    seed: int


class Inside(Protocol):
    """What the fixture `inside` gives."""

    def __call__(self, name: str, *arguments: str, timeout: float = LIMIT) -> Result:
        """Run a program of `inside/`, which has to succeed."""


class BootMachine(Protocol):
    """What the fixture `boot_machine` gives."""

    def __call__(self, *, processors: int = PROCESSORS, cpu: str | None = None) -> QemuGuest:
        """Boot a machine with the module loaded, which ends with the test."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--host-kernels",
        default=DEFAULT_KERNELS,
        help="kernels in which the host bus is tested, separated by commas: Debian's, by their "
        f"series, and {DEBUG}, which is built; default: {DEFAULT_KERNELS}",
    )
    parser.addoption(
        "--host-long", action="store_true",
        help="the hard tests of the host bus at full length, which takes hours",
    )  # fmt: skip
    parser.addoption(
        "--host-seed", type=int, default=1, help="what the tests of the host bus draw at random"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" in metafunc.fixturenames:
        names = metafunc.config.getoption("host_kernels", DEFAULT_KERNELS).split(",")
        metafunc.parametrize("kernel", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> StockKernel:
    get = debug_kernel if request.param == DEBUG else partial(fetch_kernel, request.param)
    return get(lambda step, share: None)


@pytest.fixture(scope="session")
def lengths(request: pytest.FixtureRequest) -> Lengths:
    seed = request.config.getoption("host_seed", 1)
    if request.config.getoption("host_long", False):
        return Lengths(10_000_000, 1_000_000, 1_000_000, 1_000, seed)
    return Lengths(200_000, 50_000, 50_000, 20, seed)


@pytest.fixture(scope="session")
def modules(kernel: StockKernel) -> Modules:
    """Builds the module in a folder of the repository; where the guest sees it. /tmp is its own."""
    built: dict[str, str] = {}

    def build(name: str) -> str:
        if name not in built:
            target = ROOT / "build" / "modules" / kernel.release / name.replace("/", "-")
            built[name] = str(build_stock_module(kernel, ROOT / name, target))
        return built[name]

    return build


@dataclass
class Shared:
    """The machine of many tests; another one where a test has spoiled it."""

    bus: QemuBus
    module: Path

    def guest(self) -> tuple[QemuGuest, int]:
        """The guest, and from which line of its log on it is this test's."""
        guest = self.bus.guest
        if guest is not None:
            if guest.alive and not guest.log.problems():
                return guest, guest.log.position()
            guest.close()
        guest = self.bus.boot()
        guest.load_module(self.module)
        return guest, 0


@pytest.fixture(scope="session")
def shared(
    request: pytest.FixtureRequest, kernel: StockKernel, modules: Modules
) -> Iterator[Shared]:
    with QemuBus(
        kernel=kernel, memory=MEMORY, processors=PROCESSORS,
        echo=request.config.stash.get(ECHO, None),
    ) as bus:  # fmt: skip
        yield Shared(bus, Path(modules("kernel")))


@pytest.fixture
def guest(request: pytest.FixtureRequest, shared: Shared) -> Iterator[QemuGuest]:
    """A machine with the module loaded, which other tests have used before."""
    guest, since = shared.guest()
    request.node.stash[WATCH].guests.append((guest, since))
    failures = request.session.testsfailed
    yield guest
    if request.session.testsfailed > failures:
        guest.close()


@pytest.fixture
def boot_machine(
    request: pytest.FixtureRequest, kernel: StockKernel, modules: Modules
) -> Iterator[BootMachine]:
    """Boots machines of other kinds, for one test each."""
    with ExitStack() as buses:

        def boot(*, processors: int = PROCESSORS, cpu: str | None = None) -> QemuGuest:
            bus = QemuBus(
                kernel=kernel, memory=MEMORY, processors=processors, cpu=cpu,
                echo=request.config.stash.get(ECHO, None),
            )  # fmt: skip
            guest = buses.enter_context(bus).boot()
            request.node.stash[WATCH].guests.append((guest, 0))
            guest.load_module(Path(modules("kernel")))
            return guest

        yield boot


@pytest.fixture
def inside(guest: QemuGuest) -> Inside:
    """Runs a program of `inside/` in the guest."""

    def run(name: str, *arguments: str, timeout: float = LIMIT) -> Result:
        return run_inside(guest, name, *arguments, timeout=timeout)

    return run


def run_inside(guest: QemuGuest, name: str, *arguments: str, timeout: float = LIMIT) -> Result:
    """Run a program of `inside/` in a guest; it has to succeed."""
    if guest.kernel.release.endswith(DEBUG):
        timeout *= SLOWNESS
    return guest.run(
        [sys.executable, "-m", f"tests.host.inside.{name}", *arguments],
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=str(ROOT), timeout=timeout,
    )  # fmt: skip
