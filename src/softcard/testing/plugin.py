"""pytest fixtures that give a test a bus or a booted guest, and checks of both after the test.

A test that used a guest fails when the guest's kernel logged a fault (a warning, an oops, a hung
task, ...) or the guest died, and when a card's handler raised or a card did not answer in time:

    @pytest.mark.allow_kernel_problems    the kernel may do that in this test
    @pytest.mark.allow_card_errors        cards may do that in this test

The report of a failed test has the end of the kernel's log.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from softcard.bus.host import HostBus
    from softcard.bus.simulated import SimulatedBus
    from softcard.bus.uml import UmlBus
    from softcard.guest.guest import Guest
    from softcard.guest.kernel import Kernel
    from softcard.guest.machine import MachineGuest
    from softcard.guest.qemu import QemuBus
    from softcard.guest.uml import UmlGuest

LOG_TAIL = 60
SYNC_TIMEOUT = 10.0
MARKERS = {
    "allow_kernel_problems": "the guest's kernel may warn, oops, panic or die in this test",
    "allow_card_errors": "cards may raise or time out in this test",
}


@dataclass
class Watch:
    """What is watched while a test runs: guests, each from a line of its log on."""

    guests: list[tuple[Guest, int]] = field(default_factory=list)
    errors: list[logging.LogRecord] = field(default_factory=list)


WATCH = pytest.StashKey[Watch]()
ECHO = pytest.StashKey[Callable[[str], None]]()


class BootGuest(Protocol):
    """What the fixture `boot_guest` gives; arguments as those of `UmlGuest`."""

    def __call__(self, bus: UmlBus | None = None, **options: Any) -> UmlGuest:
        """Boot a guest that ends with the test."""


class _ErrorCollector(logging.Handler):
    """Keeps what softcard logs as an error: cards do not stop a bus when they fail."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


# Hooks.


def pytest_addoption(parser: pytest.Parser) -> None:
    """See pytest."""
    group = parser.getgroup("softcard")
    group.addoption(
        "--softcard-log",
        action="store_true",
        help="show the kernel logs of guests as they come",
    )


def pytest_configure(config: pytest.Config) -> None:
    """See pytest."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if config.getoption("--softcard-log"):
        # pytest captures standard error later on; this is the real one.
        terminal = os.dup(2)
        config.add_cleanup(lambda: os.close(terminal))
        config.stash[ECHO] = lambda line: _write(terminal, f"guest | {line}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect softcard's errors from before the first fixture to after the last."""
    item.stash[WATCH] = watch = Watch()
    handler = _ErrorCollector(watch.errors)
    logger = logging.getLogger("softcard")
    logger.addHandler(handler)
    try:
        return (yield)
    finally:
        logger.removeHandler(handler)
        del item.stash[WATCH]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that passed while its kernel or its cards had problems."""
    result = yield
    watch = item.stash[WATCH]
    problems = []
    if item.get_closest_marker("allow_kernel_problems") is None:
        for guest, since in watch.guests:
            problems += _problems_of(guest, since)
    if watch.guests and item.get_closest_marker("allow_card_errors") is None:
        problems += [_described(record) for record in watch.errors]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the end of the kernel's log to the report of a failure."""
    report = yield
    if report.failed:
        for guest, _ in item.stash[WATCH].guests:
            report.sections.append(("Kernel log of the guest", guest.log.tail(LOG_TAIL)))
    return report


def _problems_of(guest: Guest, since: int) -> list[str]:
    from softcard.errors import GuestError

    problems = []
    if guest.alive:
        try:
            guest.settle_log(SYNC_TIMEOUT)
        except GuestError as error:
            problems.append(f"the guest does not answer after the test: {error}")
    elif guest.process.returncode != -signal.SIGKILL:
        problems.append(f"the guest has died with status {guest.process.returncode}")
    found = guest.log.problems(since)
    if found:
        problems.append("the guest's kernel reported:\n  " + "\n  ".join(found))
    return problems


def _described(record: logging.LogRecord) -> str:
    return logging.Formatter("%(message)s").format(record)


def _write(fd: int, text: str) -> None:
    try:
        os.write(fd, text.encode(errors="replace"))
    except OSError:
        pass  # nobody looks any more


# Fixtures.


@pytest.fixture
def simulated_bus() -> Iterator[SimulatedBus]:
    """A simulated bus; its cards are unplugged after the test."""
    from softcard.bus.simulated import SimulatedBus

    with SimulatedBus() as bus:
        yield bus


@pytest.fixture(scope="session")
def uml_kernel() -> Kernel:
    """The embedded Linux's kernel, built when that has not been done yet."""
    from softcard.guest.kernel import ensure_kernel

    return ensure_kernel()


@pytest.fixture
def uml_bus() -> Iterator[UmlBus]:
    """A User Mode Linux bus, with no guest behind it until `guest` or `boot_guest` boots one."""
    from softcard.bus.uml import UmlBus

    with UmlBus() as bus:
        yield bus


@pytest.fixture
def boot_guest(request: pytest.FixtureRequest, uml_kernel: Kernel) -> Iterator[BootGuest]:
    """Boots guests that end with the test, and are checked after it."""
    from softcard.guest.uml import UmlGuest

    watch = request.node.stash[WATCH]
    echo = request.config.stash.get(ECHO, None)
    booted: list[UmlGuest] = []

    def boot(bus: UmlBus | None = None, **options: Any) -> UmlGuest:
        guest = UmlGuest(bus, **({"kernel": uml_kernel, "echo": echo} | options))
        booted.append(guest)
        watch.guests.append((guest, 0))
        return guest

    yield boot
    for guest in booted:
        guest.close()


@pytest.fixture
def guest(boot_guest: BootGuest, uml_bus: UmlBus) -> UmlGuest:
    """A guest that has booted on `uml_bus`; plug cards into that while it runs."""
    return boot_guest(uml_bus)


@pytest.fixture
def qemu_bus(request: pytest.FixtureRequest) -> Iterator[QemuBus]:
    """A vfio-user bus with QEMU behind it; `boot` boots a stock Linux, which is checked after the
    test. softcard qemu get has to have been there before."""
    from softcard.guest.qemu import QemuBus, QemuGuest

    watch = request.node.stash[WATCH]

    class WatchedBus(QemuBus):
        def boot(self) -> QemuGuest:
            guest = super().boot()
            watch.guests.append((guest, 0))
            return guest

    with WatchedBus(echo=request.config.stash.get(ECHO, None)) as bus:
        yield bus


@pytest.fixture
def host_guest(request: pytest.FixtureRequest) -> Iterator[MachineGuest]:
    """This machine itself, to run commands on; what its kernel logs meanwhile is checked after the
    test, where this user may read that."""
    from softcard.guest.machine import MachineGuest

    with MachineGuest(echo=request.config.stash.get(ECHO, None)) as guest:
        request.node.stash[WATCH].guests.append((guest, 0))
        yield guest


@pytest.fixture
def host_bus(host_guest: MachineGuest) -> Iterator[HostBus]:
    """The PCI bus of this machine; its cards are pulled after the test.

    Skips the test where softcard's kernel module cannot be used.
    """
    from softcard.bus.host import HostBus
    from softcard.bus.host.device import open_device
    from softcard.errors import PlugError

    try:
        os.close(open_device())
    except PlugError as error:
        pytest.skip(str(error))
    with HostBus() as bus:
        yield bus
