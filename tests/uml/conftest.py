"""What the tests with a real kernel share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from softcard.guest.kernel import Kernel, build_module

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "tests" / "uml" / "modules", ROOT / "examples")

Modules = Callable[[str], Path]


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
