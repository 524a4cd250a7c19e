"""Every ioctl with what it must refuse; afterwards the same card is plugged in."""

import errno
import fcntl
import mmap
import os
import random

from tests.host.inside.raw import create, refused

from softcard.bus.host import uapi

COMMANDS = [
    value
    for name, value in vars(uapi).items()
    if name.isupper() and isinstance(value, int) and value >> 8 & 0xFF == 0xE5
]


device = os.open(uapi.DEVICE, os.O_RDWR)
for fields in ((0, 0, 0, 0), (9, 0, 0, 0), (1, 1, 0, 0), (1, 0, 0, 2_000_000)):
    refused(errno.EINVAL, device, uapi.CREATE_CARD, uapi.CREATE.pack(*fields))
refused(errno.EINVAL, device, uapi.CREATE_CARD, uapi.CREATE.pack(1, 0, 0, 0)[:-1] + b"\1")
refused(errno.ENOTTY, device, 0xE5FF, b"")

card = create(device)
good = uapi.FUNCTION_INFO.pack(
    0, 0, 4096, 0, 0, 0, 0, 0, 2, 0x40, 0, 0, 0x800, 0xC00, 1, 0x60, 0, 0, 0
)
refused(errno.EINVAL, card, uapi.PLUG_CARD, uapi.PLUG.pack(0, 0, 0, 0))
for at in (0, 4, 8, 59, 60, 64, 68, 72, 79, 81, 82, 143):
    wrong = bytearray(good)
    wrong[at] ^= 0xFF
    refused(errno.EINVAL, card, uapi.SET_FUNCTION, wrong)
refused(errno.ENXIO, card, uapi.SEND_INTERRUPT, uapi.INTERRUPT.pack(0, 0, 0, 0))
refused(errno.ENXIO, card, uapi.TRANSFER, uapi.DMA.pack(0, 0, 0, 0, 0))
fcntl.ioctl(card, uapi.SET_FUNCTION, good)
refused(errno.EBUSY, card, uapi.SET_FUNCTION, good)
for place in (
    (0, 0, 0, 0, 1, 4096, 0),
    (0, 0, 0, 0, 4096, 4096, 0),
    (0, 0, 2, 0, 0, 4096, 0),
    (0, 6, 0, 0, 0, 4096, 0),
    (1, 0, 0, 0, 0, 4096, 0),
    (0, 0, 0, 0, 0, 1 << 60, 0),
):
    refused(errno.EINVAL, card, uapi.ADD_RANGE, uapi.RANGE.pack(*place))
refused(errno.EFAULT, card, uapi.ADD_RANGE, uapi.RANGE.pack(0, 0, 0, 0, 0, 4096, 0))
for fields in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 7, 0), (0, 0, 0, 33)):
    refused(errno.EINVAL, card, uapi.PLUG_CARD, uapi.PLUG.pack(*fields))

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
