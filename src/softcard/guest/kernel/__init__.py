"""The embedded Linux: a User Mode Linux kernel, built when it is first needed and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from softcard.guest.kernel.errors import KernelError
from softcard.guest.kernel.kernel import Kernel
from softcard.guest.kernel.recipe import FLAVOURS, VIRTIO_PCIDEV_ID

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of all the work that is done, 0 to 1."""

__all__ = [
    "FLAVOURS",
    "VIRTIO_PCIDEV_ID",
    "Kernel",
    "KernelError",
    "Progress",
    "build_module",
    "ensure_kernel",
    "find_kernel",
]


def find_kernel(flavour: str = "default", source: str | None = None) -> Kernel | None:
    """The kernel that was built before, or that came with the package; None if there is none.

    Args:
        flavour: one of `FLAVOURS`.
        source: see `ensure_kernel`.

    Raises:
        UsageError: there is no such flavour or source.
    """
    from softcard.guest.kernel.cache import find

    return find(flavour, source)


def ensure_kernel(
    progress: Progress | None = None,
    *,
    flavour: str = "default",
    source: str | None = None,
    force: bool = False,
) -> Kernel:
    """The kernel, built now if it does not exist or if what it is made from has changed.

    Args:
        progress: called now and then while it is being built.
        flavour: one of `FLAVOURS`.
        source: where Linux's source comes from: `debian`, the address of a tarball, or a path;
            `$SOFTCARD_KERNEL_SOURCE` when left out.
        force: build it even if it exists, from a source that is fetched again.

    Raises:
        KernelError: it cannot be built: no network, a tool is missing, the disk is full, ...
        UsageError: there is no such flavour or source.
    """
    if not force:
        kernel = find_kernel(flavour, source)
        if kernel is not None:
            return kernel
    from softcard.guest.kernel.build import build

    return build(progress, flavour, source, force=force)


def build_module(kernel: Kernel, directory: Path) -> list[Path]:
    """Build the out-of-tree modules of a folder that has a Kbuild file or a Makefile with `obj-m`.

    Returns:
        The modules, ready for `insmod` in the guest.

    Raises:
        KernelError: the kernel has no headers, or the compiler finds fault with the code.
        UsageError: the folder has nothing to build.
    """
    from softcard.guest.kernel.modules import build

    return build(kernel, directory)
