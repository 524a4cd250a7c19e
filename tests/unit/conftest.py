"""Settings of the unit tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from softcard.cards.nvme import Nvme
from softcard.cards.nvme.engines import ENGINES

# A slow moment of a busy machine is no failure; in continuous integration every run is the same.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of the NVMe card runs with each engine."""
    if metafunc.module.__name__.rpartition(".")[2].startswith("test_nvme_"):
        metafunc.parametrize("nvme_engine", ENGINES, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def nvme_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nvme, "engine", getattr(request, "param", Nvme.engine))
        yield
