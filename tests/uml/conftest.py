"""What the tests with a real kernel share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from softcard.guest.kernel import Kernel, build_module
from softcard.guest.uml import UmlGuest

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "tests" / "uml" / "modules", ROOT / "examples")

Modules = Callable[[str], Path]


def wait_for_disk(guest: UmlGuest, disk: str = "/dev/nvme0n1") -> None:
    """Wait until the driver has looked for partitions as well.

    A card that goes while that is under way is noticed when the driver's command times out, as
    with any disk: 30 seconds later.
    """
    guest.wait_for_path(disk)
    guest.sh(f"dd if={disk} of=/dev/null count=1 2>/dev/null")


@pytest.fixture(scope="session")
def modules(uml_kernel: Kernel) -> Iterator[Modules]:
    """Builds the kernel module in a folder of `modules/` or of the examples, by its name."""
    built: dict[str, Path] = {}
    # Not below /tmp: the guest has a /tmp of its own.
    with tempfile.TemporaryDirectory(prefix="softcard-modules-", dir="/var/tmp") as folder:

        def build(name: str) -> Path:
            if name not in built:
                source = next(path for root in SOURCES if (path := root / name).is_dir())
                target = Path(folder, name)
                shutil.copytree(source, target)
                (built[name],) = build_module(uml_kernel, target)
            return built[name]

        yield build
