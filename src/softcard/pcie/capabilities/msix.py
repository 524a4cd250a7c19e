"""MSI-X (PCI Express Base 6.0, section 7.7.2)."""

from __future__ import annotations

from collections.abc import Callable

from softcard.errors import DeclarationError
from softcard.pcie.capability import StandardCapability
from softcard.pcie.register import RO, Field, Register

MAX_VECTORS = 2048
ENTRY_SIZE = 16
ENTRY_WORDS = ENTRY_SIZE // 4
LAST_BAR = 5
ADDRESS_LOW, ADDRESS_HIGH, DATA, VECTOR_CONTROL = range(ENTRY_WORDS)
# Section 7.7.2.5 to 7.7.2.8: the bits of each word that exist.
_WRITABLE = (0xFFFFFFFC, 0xFFFFFFFF, 0xFFFFFFFF, 0x00000001)
MASK_BIT = 1


class MsiXControl(Register):
    """Message control (section 7.7.2.2); `table_size` is one less than the number of vectors."""

    table_size = Field(10, 0, access=RO)
    function_mask = Field(14)
    enable = Field(15)


class Location(Register):
    """Where the table or the pending bit array is (sections 7.7.2.3 and 7.7.2.4).

    The offset counts units of 8 bytes from the start of BAR `bir`.
    """

    bir = Field(2, 0, access=RO)
    offset_qwords = Field(31, 3, access=RO)


class TableRegion:
    """The vector table, which a BAR answers accesses to with (section 7.7.2.5).

             31                                     2  1  0
            +----------------------------------------+-----+
        00h | message address                        | 0 0 |
            +----------------------------------------+-----+
        04h | message upper address                        |
            +----------------------------------------------+
        08h | message data                                 |
            +-------------------------------------------+--+
        0Ch | reserved                                  |M | vector control: mask
            +-------------------------------------------+--+

    Only aligned accesses of 4 and 8 bytes are defined by the specification; any other reads or
    changes just the bytes that it touches.

    Args:
        vectors: number of entries.
        unmasked: called with the vector whose mask bit a driver has cleared.

    Attributes:
        size: bytes.
        words: the entries, four words each.
    """

    def __init__(self, vectors: int, unmasked: Callable[[int], None]) -> None:
        self.size = vectors * ENTRY_SIZE
        self._bytes = bytearray(self.size)
        self.words = memoryview(self._bytes).cast("I")
        self._unmasked = unmasked
        self.reset()

    def reset(self) -> None:
        """All zero, but every vector masked."""
        self._bytes[:] = (MASK_BIT << 8 * 12).to_bytes(ENTRY_SIZE, "little") * (
            self.size // ENTRY_SIZE
        )

    def read(self, offset: int, size: int) -> int:
        """Up to 8 bytes."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store up to 8 bytes."""
        end = offset + size
        for at in range(offset & ~3, end, 4):
            word = value >> 8 * (at - offset) if at >= offset else value << 8 * (offset - at)
            if at < offset or at + 4 > end:
                touched = ((1 << 8 * min(end - at, 4)) - 1) & ~((1 << 8 * max(offset - at, 0)) - 1)
                word = word & touched | self.words[at >> 2] & ~touched
            self._store(at >> 2, word)

    def _store(self, index: int, word: int) -> None:
        before = self.words[index]
        kind = index % ENTRY_WORDS
        self.words[index] = word & _WRITABLE[kind]
        if kind == VECTOR_CONTROL and before & ~word & MASK_BIT:
            self._unmasked(index // ENTRY_WORDS)


class PendingRegion:
    """The pending bit array (section 7.7.2.9): a bit for each vector; a driver only reads it.

    Args:
        vectors: number of bits.

    Attributes:
        size: bytes: whole units of 8.
        flags: a byte for each vector, so that two threads can set two vectors at once.
    """

    def __init__(self, vectors: int) -> None:
        self.size = pending_size(vectors)
        self.flags = bytearray(vectors)

    def read(self, offset: int, size: int) -> int:
        """Up to 8 bytes."""
        flags = self.flags[8 * offset : 8 * (offset + size)]
        return sum(flag << bit for bit, flag in enumerate(flags))

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing: these bits are the card's."""


def pending_size(vectors: int) -> int:
    """Bytes of the pending bit array."""
    return -(-vectors // 64) * 8


class MsiX(StandardCapability):
    """One to 2,048 vectors, each with a message of its own in a table in a BAR.

             31            16 15           8 7            0
            +----------------+--------------+--------------+
        00h | control        | next pointer | id (11h)     |
            +----------------+--------------+-------+------+
        04h | table offset                          | BIR  |
            +---------------------------------------+------+
        08h | pending bit array offset              | BIR  |
            +---------------------------------------+------+

    Args:
        vectors: 1 to 2,048.
        table: BAR number and offset in it of the table, a multiple of 8.
        pba: the same for the pending bit array.
        at: offset in configuration space.

    Attributes:
        table_region, pba_region: what answers accesses to them, once the capability is placed;
            whoever owns the BAR adds them to its register file.
        on_unmask: called with a vector whose mask bit the driver cleared while it was pending,
            with MSI-X enabled and the function not masked. The pending bit is still set.
    """

    id = 0x11
    size = 12
    control = MsiXControl(0x02, width=16)
    table_location = Location(0x04)
    pba_location = Location(0x08)
    table_region: TableRegion
    pba_region: PendingRegion

    def __init__(
        self,
        *,
        vectors: int,
        table: tuple[int, int],
        pba: tuple[int, int],
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 1 <= vectors <= MAX_VECTORS:
            raise DeclarationError(f"{vectors} MSI-X vectors: there can be 1 to {MAX_VECTORS}")
        for what, (bar, offset) in (("table", table), ("pending bit array", pba)):
            if not 0 <= bar <= LAST_BAR or offset % 8 or not 0 <= offset < 1 << 32:
                raise DeclarationError(
                    f"the MSI-X {what} at offset {offset:#x} of BAR {bar} is impossible: the "
                    f"offset is a multiple of 8 below 4 GiB, the BAR 0 to {LAST_BAR}"
                )
        (table_bar, table_start), (pba_bar, pba_start) = table, pba
        if (
            table_bar == pba_bar
            and table_start < pba_start + pending_size(vectors)
            and pba_start < table_start + vectors * ENTRY_SIZE
        ):
            raise DeclarationError(
                f"the MSI-X table at {table_start:#x} ({vectors * ENTRY_SIZE:#x} bytes) and the "
                f"pending bit array at {pba_start:#x} ({pending_size(vectors):#x} bytes) overlap "
                f"in BAR {table_bar}: move one of them"
            )
        self.vectors = vectors
        self.table = table
        self.pba = pba
        self.on_unmask: Callable[[int], None] | None = None

    def setup(self) -> None:
        """Store where table and pending bits are, and make them."""
        self.control.table_size = self.vectors - 1
        for register, (bar, offset) in (
            (self.table_location, self.table),
            (self.pba_location, self.pba),
        ):
            register.value = offset | bar
        self.table_region = TableRegion(self.vectors, self._unmasked)
        self.pba_region = PendingRegion(self.vectors)

    def message(self, vector: int) -> tuple[int, int]:
        """Address and data of the message that signals `vector`."""
        words = self.table_region.words
        entry = vector * ENTRY_WORDS
        return words[entry] | words[entry + ADDRESS_HIGH] << 32, words[entry + DATA]

    def masked(self, vector: int) -> bool:
        """Whether the vector, or the whole function, is masked."""
        return (
            bool(self.table_region.words[vector * ENTRY_WORDS + VECTOR_CONTROL] & MASK_BIT)
            or self.control.function_mask != 0
        )

    def pending(self, vector: int) -> bool:
        """Whether the vector's pending bit is set."""
        return self.pba_region.flags[vector] != 0

    def set_pending(self, vector: int, pending: bool) -> None:
        """Set or clear the vector's pending bit."""
        self.pba_region.flags[vector] = pending

    def pending_unmasked(self) -> list[int]:
        """The vectors that are pending and not, or no longer, masked, in their order."""
        flags = self.pba_region.flags
        if 1 not in flags:
            return []
        return [vector for vector, flag in enumerate(flags) if flag and not self.masked(vector)]

    def reset_table(self) -> None:
        """Every entry zero and masked, nothing pending: the state after any reset."""
        self.table_region.reset()
        self.pba_region.flags[:] = bytes(self.vectors)

    def restore(self) -> None:
        """A reset: the table and the pending bits, too, are as at power-on."""
        self.reset_table()

    def _unmasked(self, vector: int) -> None:
        control = self.control
        if (
            self.on_unmask is not None
            and self.pba_region.flags[vector]
            and control.enable
            and not control.function_mask
        ):
            self.on_unmask(vector)
