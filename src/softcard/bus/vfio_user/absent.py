"""What a client finds where a card was pulled while its connection lasts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from softcard.errors import PlugError
from softcard.model.link import ResetKind, SharedRange, Upstream, all_ones

INTERRUPT_PIN = 0x3D


class Absent:
    """A function that does not answer: reads give all-ones, and writes have no effect."""

    def connect(self, upstream: Upstream) -> None:
        """See `Downstream.connect`."""

    def disconnect(self) -> None:
        """See `Downstream.disconnect`."""

    def config_read(self, offset: int, size: int) -> int:
        """See `Downstream.config_read`."""
        # QEMU asks for the pin by itself when the machine is reset, and takes it for one of four.
        return 0 if (offset, size) == (INTERRUPT_PIN, 1) else all_ones(size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """See `Downstream.config_write`."""

    def read(self, bar: int, offset: int, size: int) -> int:
        """See `Downstream.read`."""
        return all_ones(size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """See `Downstream.write`."""

    def read_block(self, bar: int, offset: int, length: int) -> bytes:
        """See `Downstream.read_block`."""
        return b"\xff" * length

    def write_block(self, bar: int, offset: int, data: bytes | memoryview) -> None:
        """See `Downstream.write_block`."""

    def reset(self, kind: ResetKind) -> None:
        """See `Downstream.reset`."""

    def vectors_wired(self, vectors: Collection[int]) -> None:
        """See `Downstream.vectors_wired`."""

    def memory_added(self, address: int, size: int) -> None:
        """See `Downstream.memory_added`."""

    def memory_removed(self, address: int, size: int) -> None:
        """See `Downstream.memory_removed`."""

    def shared_ranges(self) -> Sequence[SharedRange]:
        """See `Downstream.shared_ranges`."""
        return []

    @property
    def migratable(self) -> bool:
        """See `Downstream.migratable`."""
        return False

    def suspend(self) -> None:
        """See `Downstream.suspend`."""

    def resume(self) -> None:
        """See `Downstream.resume`."""

    def save_state(self) -> bytes:
        """See `Downstream.save_state`."""
        raise PlugError("there is no card whose state could be saved: it was pulled")

    def load_state(self, state: bytes) -> None:
        """See `Downstream.load_state`."""
        raise PlugError("there is no card that could take a state: it was pulled")
