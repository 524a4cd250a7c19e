"""The errors that softcard raises. Each carries one sentence: what was wrong, with which value,
and what to do about it."""


class SoftcardError(Exception):
    """Base of every error that softcard raises on purpose."""


class UsageError(SoftcardError):
    """The caller's mistake: a bad argument, file or declaration. The command line exits with 2."""


class DeclarationError(UsageError):
    """A card's declaration contradicts itself or the specification."""


class PlugError(SoftcardError):
    """A card cannot be plugged into this bus or slot, or the slot is in the wrong state."""


class DmaError(SoftcardError):
    """A DMA that the driver did not allow or that reaches no memory.

    Attributes:
        address: bus address of the first byte.
        length: number of bytes asked for.
        done: where many pieces were asked for at once, those that were transferred before.
    """

    def __init__(self, address: int, length: int, why: str, *, done: int = 0) -> None:
        super().__init__(f"DMA of {length} bytes at bus address {address:#x}: {why}")
        self.address = address
        self.length = length
        self.done = done


class StateError(SoftcardError):
    """A saved state does not fit the card that is to load it."""


class GuestError(SoftcardError):
    """The guest died, hung, or could not do what was asked; carries the end of its log."""
