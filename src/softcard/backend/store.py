"""A block store: bytes that a storage card keeps, by offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class BlockStore(Protocol):
    """Bytes by offset, all zero at first.

    Offsets and lengths are in bytes; a caller keeps them within `size`. Every method may raise
    `OSError`, whose number says why, and then has done nothing or a part. Methods may be called
    from any thread; those of two threads that touch the same bytes have no order.

    Attributes:
        size: bytes.
        view: the bytes themselves, writable, where the store is memory; otherwise None.
        slow: `flush`, `discard` and `write_zeroes` may take long enough to belong on a thread of
            their own.
        read_only: nothing may be written.
    """

    @property
    def size(self) -> int:
        """See the class."""

    @property
    def view(self) -> memoryview | None:
        """See the class."""

    @property
    def slow(self) -> bool:
        """See the class."""

    @property
    def read_only(self) -> bool:
        """See the class."""

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other, with the bytes from `offset` on."""

    def write_from(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Store the buffers, one after the other, from `offset` on."""

    def flush(self) -> None:
        """Return when everything written so far outlives a loss of power."""

    def discard(self, offset: int, length: int) -> None:
        """The bytes are no longer needed: they read as zero, and take no room where possible."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """The bytes read as zero, and keep their room."""

    def open(self) -> None:
        """Take what `close` gave back; a store is open when it is made."""

    def close(self) -> None:
        """Give back files and locks; the data stay. Nothing but `open` may be called then."""
