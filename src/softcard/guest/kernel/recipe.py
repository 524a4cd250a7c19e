"""What the kernel is made from, apart from Linux itself: configuration and patches."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

from softcard.errors import UsageError
from softcard.guest.kernel.errors import KernelError

VIRTIO_PCIDEV_ID = 1234
"""The virtio device number of a card; Linux has none, so kernel and bus agree on this one."""

FLAVOURS = {"default": (), "debug": ("debug.config",)}
"""Flavours of the kernel, with the configuration that each adds."""


@dataclass(frozen=True)
class Recipe:
    """Configuration and patches of one flavour, in the order in which they apply."""

    flavour: str
    fragments: tuple[Path, ...]
    patches: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """Changes when anything in the recipe does."""
        digest = hashlib.sha256(platform.machine().encode())
        for path in self.fragments + self.patches:
            content = path.read_bytes()
            digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


def recipe_folder() -> Path:
    """Where configuration and patches are: in the package, or beside it in a checkout."""
    inside = Path(__file__).parent / "linux"
    if inside.is_dir():
        return inside
    return Path(__file__).parents[4] / "linux"


def recipe(flavour: str = "default") -> Recipe:
    """The recipe of a flavour.

    Raises:
        UsageError: there is no such flavour.
        KernelError: this installation lacks configuration and patches.
    """
    if flavour not in FLAVOURS:
        raise UsageError(
            f"there is no kernel flavour {flavour!r}: choose one of {', '.join(FLAVOURS)}"
        )
    folder = recipe_folder()
    fragments = sorted(folder.glob("config/*.config"))
    if not fragments:
        raise KernelError(
            f"the kernel's configuration is missing from {folder}: install softcard again"
        )
    fragments += [folder / name for name in FLAVOURS[flavour]]
    return Recipe(flavour, tuple(fragments), tuple(sorted(folder.glob("patches/*.patch"))))
