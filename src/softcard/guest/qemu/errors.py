"""What goes wrong with QEMU and the kernels that it boots."""

from softcard.errors import SoftcardError


class QemuError(SoftcardError):
    """QEMU, or a kernel for it, cannot be had; says why and what to do."""
