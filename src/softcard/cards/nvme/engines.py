"""The engines that there are."""

from __future__ import annotations

from softcard.cards.nvme.engine import Engine

try:
    from softcard.cards.nvme.compiled import CompiledEngine
except ImportError:
    # The package was built without a C compiler.
    ENGINES: tuple[type[Engine], ...] = (Engine,)
else:
    ENGINES = (CompiledEngine, Engine)
"""The best first; each does the same."""
