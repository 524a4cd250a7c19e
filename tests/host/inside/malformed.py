"""Every ioctl with what it must refuse; afterwards the same card is plugged in."""

import errno
import fcntl
import mmap
import os
import random

from softcard.bus.host import uapi

COMMANDS = [
    value
    for name, value in vars(uapi).items()
    if name.isupper() and isinstance(value, int) and value >> 8 & 0xFF == 0xE5
]


def refused(fd: int, command: int, argument: bytes | bytearray, why: int) -> None:
    try:
        fcntl.ioctl(fd, command, bytearray(argument))
    except OSError as error:
        assert error.errno == why, (hex(command), argument.hex(), error)
    else:
        raise AssertionError(f"{command:#x} is taken with {argument.hex()}")


def create(device: int) -> int:
    fd: int = fcntl.ioctl(device, uapi.CREATE_CARD, bytearray(uapi.CREATE.pack(1, 0, 0, 0)))
    return fd


device = os.open(uapi.DEVICE, os.O_RDWR)
for fields in ((0, 0, 0, 0), (9, 0, 0, 0), (1, 1, 0, 0), (1, 0, 0, 2_000_000)):
    refused(device, uapi.CREATE_CARD, uapi.CREATE.pack(*fields), errno.EINVAL)
refused(device, uapi.CREATE_CARD, uapi.CREATE.pack(1, 0, 0, 0)[:-1] + b"\1", errno.EINVAL)
refused(device, 0xE5FF, b"", errno.ENOTTY)

card = create(device)
good = uapi.FUNCTION_INFO.pack(
    0, 0, 4096, 0, 0, 0, 0, 0, 2, 0x40, 0, 0, 0x800, 0xC00, 1, 0x60, 0, 0, 0
)
refused(card, uapi.PLUG_CARD, uapi.PLUG.pack(0, 0, 0, 0), errno.EINVAL)
for at in (0, 4, 8, 59, 60, 64, 68, 72, 79, 81, 82, 143):
    wrong = bytearray(good)
    wrong[at] ^= 0xFF
    refused(card, uapi.SET_FUNCTION, wrong, errno.EINVAL)
refused(card, uapi.SEND_INTERRUPT, uapi.INTERRUPT.pack(0, 0, 0, 0), errno.ENXIO)
refused(card, uapi.TRANSFER, uapi.DMA.pack(0, 0, 0, 0, 0), errno.ENXIO)
fcntl.ioctl(card, uapi.SET_FUNCTION, good)
refused(card, uapi.SET_FUNCTION, good, errno.EBUSY)
for place in (
    (0, 0, 0, 0, 1, 4096, 0),
    (0, 0, 0, 0, 4096, 4096, 0),
    (0, 0, 2, 0, 0, 4096, 0),
    (0, 6, 0, 0, 0, 4096, 0),
    (1, 0, 0, 0, 0, 4096, 0),
    (0, 0, 0, 0, 0, 1 << 60, 0),
):
    refused(card, uapi.ADD_RANGE, uapi.RANGE.pack(*place), errno.EINVAL)
refused(card, uapi.ADD_RANGE, uapi.RANGE.pack(0, 0, 0, 0, 0, 4096, 0), errno.EFAULT)
for fields in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 7, 0), (0, 0, 0, 33)):
    refused(card, uapi.PLUG_CARD, uapi.PLUG.pack(*fields), errno.EINVAL)

# Memory that may not be mapped, or is not there.
for offset, flags, access, why in (
    (0, mmap.MAP_PRIVATE, mmap.PROT_READ, errno.EINVAL),
    (4096, mmap.MAP_SHARED, mmap.PROT_READ, errno.EINVAL),
    (uapi.MAP_FUNCTION, mmap.MAP_PRIVATE, mmap.PROT_READ, errno.EINVAL),
    (uapi.MAP_FUNCTION, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_EXEC, errno.EACCES),
    (uapi.MAP_FUNCTION, mmap.MAP_SHARED, mmap.PROT_READ, errno.ENXIO),
    (uapi.MAP_FUNCTION * 2, mmap.MAP_SHARED, mmap.PROT_READ, errno.EINVAL),
):
    try:
        mmap.mmap(card, 4096, flags=flags, prot=access, offset=offset)
    except OSError as error:
        # A newer kernel runs no code of such a file in any case, and says so before we are asked.
        allowed = (why, errno.EPERM) if access & mmap.PROT_EXEC else (why,)
        assert error.errno in allowed, (hex(offset), flags, access, error)
    else:
        raise AssertionError(f"{offset:#x} can be mapped with {flags}, {access}")

# Noise: nothing of it may do harm. Nobody serves what it happens to plug in.
random.seed(1)
calls = 0
for _ in range(200):
    other = create(device)
    for _ in range(200):
        command = random.choice(COMMANDS)
        if command in (uapi.CREATE_CARD, uapi.PLUG_CARD):
            continue
        argument = bytearray(random.choice((good, random.randbytes(144), bytes(144))))
        argument[random.randrange(144)] ^= 1 << random.randrange(8)
        try:
            fcntl.ioctl(other, command, argument)
        except OSError:
            pass
        calls += 1
    os.close(other)
os.close(card)
print(calls, "calls")
