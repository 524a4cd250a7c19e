"""Settings of the unit tests."""

from __future__ import annotations

import os

from hypothesis import settings

# A slow moment of a busy machine is no failure; in continuous integration every run is the same.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
