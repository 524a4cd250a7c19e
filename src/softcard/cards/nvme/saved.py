"""What a card with a file remembers beside the file: its namespaces, once the host changed them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from softcard.backend.part import Extent, PartStore
from softcard.cards.nvme.namespace import BLOCK_SHIFTS, MAX_NAMESPACES, Namespace, Namespaces
from softcard.errors import UsageError

VERSION = 1


class SavedState:
    """A small JSON file beside the data, replaced as a whole.

    It is made when the host first creates, deletes, attaches, detaches or formats a namespace, or
    saves a feature; until then the card's options say what there is.

    Args:
        path: the file of the data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".nvme")

    def load(self, namespaces: Namespaces, enter_feature: Callable[[str, int], object]) -> bool:
        """Enter the saved namespaces and features; whether anything was saved.

        Args:
            namespaces: where the namespaces are entered.
            enter_feature: called with the name and value of each feature; raises `ValueError`
                where there is no such feature.

        Raises:
            UsageError: the file is damaged, or does not fit the data.
        """
        try:
            saved = json.loads(self.path.read_text())
            if saved["version"] != VERSION:
                raise ValueError(f"version {saved['version']}")
            for entry in saved["namespaces"]:
                namespaces.add(_namespace(entry, namespaces))
            for name, value in saved["features"].items():
                enter_feature(str(name), int(value))
            return True
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{self.path} does not describe the namespaces of {self.path.stem} ({error}): "
                "restore it, or delete it to have one namespace of the whole file"
            ) from None

    def save(self, text: str) -> None:
        """Replace the file; raises `OSError`."""
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.path)


def describe(namespaces: Namespaces, features: dict[str, int]) -> str:
    """What `SavedState.save` is to write."""
    entries = [
        {
            "nsid": n.nsid,
            "block_size": 1 << n.shift,
            "blocks": n.blocks,
            "attached": n.attached,
            "uuid": str(n.uuid),
            "extents": [[e.start, e.size] for e in n.store.extents],
        }
        for n in namespaces.by_id.values()
    ]
    saved = {"version": VERSION, "namespaces": entries, "features": features}
    return json.dumps(saved, indent=1) + "\n"


def _extent(pair: object) -> Extent:
    match pair:
        case [int(start), int(size)]:
            return Extent(start, size)
        case _:
            raise ValueError(f"{pair} is not the place of blocks")


def _namespace(entry: dict[str, object], namespaces: Namespaces) -> Namespace:
    """One saved namespace, checked: a damaged file must not lead to another's data."""
    match entry:
        case {
            "nsid": int(nsid),
            "block_size": int(block_size),
            "blocks": int(blocks),
            "attached": bool(attached),
            "uuid": str(identity),
            "extents": [*pairs],
        }:
            pass
        case _:
            raise ValueError("a namespace is incomplete")
    extents = [_extent(pair) for pair in pairs]
    taken = [e for n in namespaces.by_id.values() for e in n.store.extents]
    for number, extent in enumerate(extents):
        if extent.start < 0 or extent.size < 1 or extent.end > namespaces.capacity:
            raise ValueError(f"namespace {nsid} ends at {extent.end}, behind the data")
        for other in (*taken, *extents[:number]):
            if extent.start < other.end and other.start < extent.end:
                raise ValueError(f"namespace {nsid} overlaps another")
    store = PartStore(namespaces.whole, extents)
    if block_size not in [1 << shift for shift in BLOCK_SHIFTS]:
        raise ValueError(f"namespace {nsid} has blocks of {block_size} bytes")
    if not 1 <= nsid <= MAX_NAMESPACES or nsid in namespaces.by_id:
        raise ValueError(f"namespace {nsid} is there twice, or its number is out of range")
    if not 1 <= blocks * block_size <= store.size:
        raise ValueError(f"namespace {nsid} has {blocks} blocks in {store.size} bytes")
    return Namespace(
        nsid,
        store,
        shift=block_size.bit_length() - 1,
        blocks=blocks,
        attached=attached,
        identity=uuid.UUID(identity),
    )
