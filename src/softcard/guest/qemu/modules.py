"""Which module files a kernel needs to find its root, in the order in which they load."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from softcard.guest.qemu.compression import CompressionError, unpack
from softcard.guest.qemu.errors import QemuError


def module_images(folder: Path, names: Iterable[str]) -> list[bytes]:
    """Modules and all that they depend on, unpacked, each after what it depends on.

    Args:
        folder: a folder with `modules.dep` and `modules.builtin`, such as `/lib/modules/6.12.1`.
        names: modules as `lsmod` shows them; those that the kernel has built in are left out.

    Raises:
        QemuError: one is neither there nor built in, or cannot be unpacked.
    """
    dependencies = _dependencies(folder / "modules.dep")
    files = {_name(path): path for path in dependencies}
    built_in = {_name(line) for line in _lines(folder / "modules.builtin")}
    wanted: dict[str, None] = {}
    for name in names:
        if name in files:
            # What depmod lists last has to be loaded first.
            wanted.update(dict.fromkeys([*reversed(dependencies[files[name]]), files[name]]))
        elif name not in built_in:
            raise QemuError(
                f"the kernel's modules in {folder} lack {name}, without which a guest cannot reach "
                "its root: take the kernel of a full distribution, not one for clouds"
            )
    return [_unpack(folder / path) for path in wanted]


def _dependencies(path: Path) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in _lines(path))
    return {module: needed.split() for module, _, needed in lines}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise QemuError(f"{path} cannot be read: {error.strerror}; run depmod") from None


def _name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def _unpack(path: Path) -> bytes:
    try:
        return unpack(path.read_bytes())
    except OSError as error:
        raise QemuError(f"module {path} cannot be read: {error.strerror}") from None
    except CompressionError as error:
        raise QemuError(f"module {path} cannot be unpacked: {error}") from None
