"""What goes wrong with the embedded kernel."""

from softcard.errors import SoftcardError


class KernelError(SoftcardError):
    """The embedded kernel, or a module for it, cannot be had; says why and what to do."""
