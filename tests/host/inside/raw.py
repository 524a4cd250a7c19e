"""The kernel module's interface without the bus that uses it."""

from __future__ import annotations

import fcntl

from softcard.bus.host import uapi


def refused(why: int, fd: int, command: int, argument: bytes | bytearray) -> None:
    """The call must fail with this errno."""
    try:
        fcntl.ioctl(fd, command, bytearray(argument))
    except OSError as error:
        assert error.errno == why, (hex(command), argument.hex(), error)
    else:
        raise AssertionError(f"{command:#x} is taken with {argument.hex()}")


def create(device: int) -> int:
    """A card with one function."""
    fd: int = fcntl.ioctl(device, uapi.CREATE_CARD, bytearray(uapi.CREATE.pack(1, 0, 0, 0)))
    return fd
