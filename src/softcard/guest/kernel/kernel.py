"""A kernel that is ready to be used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

IMAGE, CONFIG, MODULES, BUILD, MANIFEST = "linux", "config", "modules", "build", "kernel.json"


@dataclass(frozen=True)
class Kernel:
    """A kernel and what belongs to it.

    Attributes:
        image: the executable.
        release: what `uname -r` says in it.
        folder: where everything is.
        modules: the folder with its own loadable modules; None when all is built in.
        config: the configuration it was built with.
        source: which source it was built from, exactly.
        flavour: which of the flavours it is.
        recipe: digest of the configuration and patches it was made with.
        objects: how many files were compiled for it.
    """

    image: Path
    release: str
    folder: Path
    modules: Path | None
    config: Path
    source: str
    flavour: str
    recipe: str
    objects: int

    @property
    def build_tree(self) -> Path | None:
        """What is needed to build modules for it; None where it came without."""
        tree = self.folder / BUILD
        return tree if tree.is_dir() else None


def load(folder: Path) -> Kernel | None:
    """The kernel in `folder`, or None if there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    modules = folder / MODULES
    return Kernel(
        image=folder / IMAGE,
        release=manifest["release"],
        folder=folder,
        modules=modules if modules.is_dir() else None,
        config=folder / CONFIG,
        source=manifest["source"],
        flavour=manifest["flavour"],
        recipe=manifest["recipe"],
        objects=manifest["objects"],
    )


def write_manifest(folder: Path, manifest: dict[str, str | int]) -> None:
    """Describe the kernel in `folder`; that makes it one that `load` finds."""
    text = json.dumps(manifest, indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n")
