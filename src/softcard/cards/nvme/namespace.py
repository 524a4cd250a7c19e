"""Namespaces and the capacity they are made of (NVMe 1.4, sections 6.1 and 8.12)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from softcard.backend.part import Extent, PartStore
from softcard.backend.store import BlockStore
from softcard.cards.nvme.command import ALL_NAMESPACES
from softcard.cards.nvme.status import CommandError, Status

BLOCK_SHIFTS = (9, 12)
"""The LBA formats: logarithm of the block size, by format number."""
GRANULE = 4096
MAX_NAMESPACES = 32
# An EUI-64 with the bit for locally administered numbers set, so that it collides with no maker's.
EUI64_PREFIX = bytes((0x02, 0x5C, 0xCA))


class Namespace:
    """Blocks by number.

    Attributes:
        nsid: identifier.
        store: where the blocks are.
        view: the store's bytes themselves, where they are memory in one piece.
        shift: logarithm of the block size.
        blocks: their number.
        attached: whether the controller offers it to the host.
        formatting: a format is under way, and the blocks cannot be accessed.
        uuid: what tells it from every other namespace.
    """

    __slots__ = ("attached", "blocks", "formatting", "nsid", "shift", "store", "uuid", "view")

    def __init__(
        self,
        nsid: int,
        store: PartStore,
        *,
        shift: int,
        blocks: int,
        attached: bool,
        identity: uuid.UUID,
    ) -> None:
        self.nsid = nsid
        self.store = store
        self.view = None if store.read_only else store.view
        self.shift = shift
        self.blocks = blocks
        self.attached = attached
        self.formatting = False
        self.uuid = identity

    @property
    def format(self) -> int:
        """Number of the LBA format."""
        return BLOCK_SHIFTS.index(self.shift)

    @property
    def eui64(self) -> bytes:
        """IEEE extended unique identifier, big-endian."""
        return EUI64_PREFIX + self.uuid.bytes[:5]

    @property
    def nguid(self) -> bytes:
        """Namespace globally unique identifier, big-endian: eight bytes of our own choice, then an
        identifier of the same maker as in `eui64`."""
        return self.uuid.bytes[8:] + EUI64_PREFIX + self.uuid.bytes[:5]

    def set_format(self, shift: int) -> None:
        """Use blocks of another size, as many as fit."""
        self.shift = shift
        self.blocks = self.store.size >> shift

    def check_range(self, slba: int, count: int) -> None:
        """Raises `CommandError` where blocks are not all inside the namespace."""
        if slba + count > self.blocks:
            raise CommandError(Status.LBA_OUT_OF_RANGE, lba=slba)


class Namespaces:
    """Every namespace of the card, and the capacity that none of them has.

    Attributes:
        capacity: bytes in all.
        by_id: the namespaces that exist, by identifier.
        ready: those whose blocks the host can access now.
        changed: called when `ready`, or the format of one of those, has changed.
    """

    def __init__(self, whole: BlockStore) -> None:
        self.whole = whole
        self.capacity = whole.size
        self.by_id: dict[int, Namespace] = {}
        self.ready: dict[int, Namespace] = {}
        self.changed: Callable[[], object] = lambda: None

    @property
    def unallocated(self) -> int:
        """Bytes that no namespace has."""
        return self.capacity - sum(n.store.size for n in self.by_id.values())

    def add(self, namespace: Namespace) -> None:
        """Enter a namespace."""
        self.by_id[namespace.nsid] = namespace
        self.update()

    def remove(self, namespace: Namespace) -> None:
        """Its capacity is free again."""
        del self.by_id[namespace.nsid]
        self.update()

    def update(self) -> None:
        """A namespace was attached, detached or formatted, or its format has begun or ended."""
        self.ready.clear()
        self.ready.update(
            (n.nsid, n) for n in self.by_id.values() if n.attached and not n.formatting
        )
        self.changed()

    def allocate(self, size: int) -> PartStore | None:
        """Room for a namespace, from the first gaps; None where there is too little."""
        wanted, extents = size, []
        for gap in self._gaps():
            if wanted:
                extents.append(Extent(gap.start, min(gap.size, wanted)))
                wanted -= extents[-1].size
        return None if wanted else PartStore(self.whole, extents)

    def _gaps(self) -> Iterable[Extent]:
        taken = sorted(e for n in self.by_id.values() for e in n.store.extents)
        at = 0
        for extent in (*taken, Extent(self.capacity, 0)):
            if extent.start > at:
                yield Extent(at, extent.start - at)
            at = extent.end

    def free_id(self) -> int | None:
        """The lowest identifier that no namespace has."""
        return next((i for i in range(1, MAX_NAMESPACES + 1) if i not in self.by_id), None)

    # How commands look them up (section 6.1.5).

    def existing(self, nsid: int) -> Namespace | None:
        """The namespace, attached or not; None where the identifier is unused.

        Raises:
            CommandError: no namespace can ever have this identifier.
        """
        if not 1 <= nsid <= MAX_NAMESPACES:
            raise CommandError(Status.INVALID_NAMESPACE)
        return self.by_id.get(nsid)

    def active(self, nsid: int) -> Namespace | None:
        """The attached namespace; None where the identifier is inactive.

        Raises:
            CommandError: no namespace can ever have this identifier.
        """
        found = self.existing(nsid)
        return found if found is not None and found.attached else None

    def accessible(self, nsid: int) -> Namespace:
        """The namespace whose blocks a command accesses.

        Raises:
            CommandError: there is none, or it is being formatted.
        """
        found = self.active(nsid)
        if found is None:
            raise CommandError(Status.INVALID_FIELD)
        if found.formatting:
            raise CommandError(Status.FORMAT_IN_PROGRESS)
        return found

    def selected(self, nsid: int) -> list[Namespace]:
        """The accessible namespace of this identifier, or every attached one where it is the
        broadcast value.

        Raises:
            CommandError: there is none, or one is being formatted.
        """
        if nsid != ALL_NAMESPACES:
            return [self.accessible(nsid)]
        return [self.accessible(n.nsid) for n in self.by_id.values() if n.attached]


def share_out(namespaces: Namespaces, count: int, block_size: int, card: uuid.UUID) -> None:
    """Make the `count` namespaces of a new card, alike and together as large as its capacity."""
    unit = max(block_size, GRANULE) if count > 1 else block_size
    share = namespaces.capacity // count // unit * unit
    shift = block_size.bit_length() - 1
    for nsid in range(1, count + 1):
        store = PartStore(namespaces.whole, [Extent((nsid - 1) * share, share)])
        namespaces.add(
            Namespace(
                nsid,
                store,
                shift=shift,
                blocks=share >> shift,
                attached=True,
                identity=uuid.uuid5(card, f"namespace {nsid}"),
            )
        )
