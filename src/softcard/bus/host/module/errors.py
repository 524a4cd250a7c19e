"""What goes wrong with the kernel module."""

from softcard.errors import SoftcardError


class ModuleError(SoftcardError):
    """The kernel module cannot be built, loaded or unloaded; says why and what to do."""
