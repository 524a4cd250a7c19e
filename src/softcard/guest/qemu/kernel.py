"""The stock kernels that QEMU boots: a distribution's image and its modules."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from softcard.errors import UsageError
from softcard.guest.kernel.cache import cache_folder
from softcard.guest.qemu.compression import CompressionError, unpack
from softcard.guest.qemu.errors import QemuError

# The header of a bzImage, Documentation/arch/x86/boot.rst.
SETUP_SECTORS, MAGIC, VERSION, PAYLOAD = 0x1F1, 0x202, 0x20E, 0x248
HEADER_END = 0x250
SECTOR = 512
# A note of this owner and type has the entry point for a loader that unpacks the kernel itself.
NOTE_OWNER, NOTE_PHYS32_ENTRY = b"Xen\0", 18
ELF_PROGRAM_NOTE = 4


@dataclass(frozen=True)
class StockKernel:
    """A kernel as a distribution builds it.

    Attributes:
        image: the kernel as it was built.
        bootable: what QEMU boots: the image, or the ELF file within it, which boots sooner.
        release: what `uname -r` says in it.
        modules: the folder with its modules and their `modules.dep`; None when all is built in.
    """

    image: Path
    bootable: Path
    release: str
    modules: Path | None


def stock_kernel(image: Path, modules: Path | None = None) -> StockKernel:
    """The kernel in a file such as `/boot/vmlinuz-6.12.107+deb13-amd64`.

    Args:
        image: the file, a bzImage.
        modules: the folder with its modules, such as `/lib/modules/6.12.107+deb13-amd64`; it is
            looked for beside the image and in `/lib/modules` when left out.

    Raises:
        UsageError: the file is no kernel, or the folder has no modules.
    """
    image = image.absolute()
    release = release_of(image)
    if modules is None:
        beside = image.parent.parent
        places = (beside / "lib/modules", beside / "usr/lib/modules", Path("/lib/modules"))
        found = (place / release for place in places)
        modules = next((place for place in found if (place / "modules.dep").is_file()), None)
    elif not (modules / "modules.dep").is_file():
        raise UsageError(
            f"{modules} has no modules.dep: give the folder with the modules of {release}, after "
            "depmod"
        )
    elf = unpacked_file(image)
    return StockKernel(
        image, elf if elf.exists() else image, release, modules.absolute() if modules else None
    )


def unpacked_file(image: Path) -> Path:
    """Where the ELF file within an image is kept, if it is."""
    return image.with_name(f"unpacked-{image.name}")


def kernels_folder() -> Path:
    """Where `softcard qemu get` puts kernels, one folder for each release."""
    return cache_folder("qemu") / "linux"


def find_kernel() -> StockKernel | None:
    """The newest kernel that was fetched; None if there is none."""
    images = kernels_folder().glob("*/boot/vmlinuz-*")
    newest = max(images, key=lambda path: path.stat().st_mtime, default=None)
    return stock_kernel(newest) if newest else None


def series_folder(series: str) -> Path:
    """Where the kernel of a series such as 6.1 is put; apart from those of `kernels_folder`, so
    that what boots when nothing is said does not change."""
    return cache_folder("qemu") / "series" / series


def find_kernel_of(series: str) -> StockKernel | None:
    """The kernel of a series such as 6.1 that was fetched; None if there is none."""
    kernel = find_kernel()
    if kernel is not None and is_of_series(kernel.release, series):
        return kernel
    image = next(series_folder(series).glob("boot/vmlinuz-*"), None)
    return stock_kernel(image) if image else None


def is_of_series(version: str, series: str) -> bool:
    """Whether a kernel's release, or the version of its package, is of a series such as 6.1."""
    return version.startswith(f"{series}.")


def need_kernel() -> StockKernel:
    """As `find_kernel`.

    Raises:
        QemuError: there is none.
    """
    kernel = find_kernel()
    if kernel is None:
        raise QemuError("no kernel for QEMU has been fetched yet: softcard qemu get fetches one")
    return kernel


def release_of(image: Path) -> str:
    """Which release a bzImage says that it is.

    Raises:
        UsageError: it is none.
    """
    try:
        with image.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise UsageError(f"kernel {image} cannot be read: {error.strerror}") from None
    if len(head) < HEADER_END or head[MAGIC : MAGIC + 4] != b"HdrS":
        raise UsageError(f"{image} is no Linux kernel for x86: give a file such as /boot/vmlinuz")
    at = SECTOR + struct.unpack_from("<H", head, VERSION)[0]
    return head[at:].partition(b"\0")[0].decode(errors="replace").partition(" ")[0]


def unpacked(image: Path) -> bytes | None:
    """The ELF file within a bzImage, which boots sooner; None where it cannot be had or booted."""
    data = image.read_bytes()
    offset, length = struct.unpack_from("<II", data, PAYLOAD)
    payload = data[(data[SETUP_SECTORS] + 1) * SECTOR + offset :][:length]
    try:
        kernel = unpack(payload, struct.unpack("<I", payload[-4:])[0])
    except CompressionError:
        return None
    return kernel if _has_entry_note(kernel) else None


def _has_entry_note(elf: bytes) -> bool:
    at, _, _, _, size, count = struct.unpack_from("<QQIHHH", elf, 32)
    for header in range(at, at + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, header)
        end = offset + length
        while kind == ELF_PROGRAM_NOTE and offset < end:
            owner_size, data_size, note = struct.unpack_from("<III", elf, offset)
            if (elf[offset + 12 :][:owner_size], note) == (NOTE_OWNER, NOTE_PHYS32_ENTRY):
                return True
            offset += 12 + (owner_size + 3 & ~3) + (data_size + 3 & ~3)
    return False
