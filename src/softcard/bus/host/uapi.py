"""The interface of the kernel module: kernel/include/uapi/linux/softcard.h in Python."""

from __future__ import annotations

import struct

DEVICE = "/dev/softcard"
API = 1

CARD_BUS = 1
BARS = 6
RING_ENTRIES = 4096
SLOTS = 256

# Where things are in the ring's mapping.
HEAD, TAIL = 0, 64
OPS, OP_SIZE = 4096, 32
ANSWERS, ANSWER_SIZE = OPS + RING_ENTRIES * OP_SIZE, 32
RING_SIZE = ANSWERS + SLOTS * ANSWER_SIZE

# enum softcard_op_code
WRITE, READ, CONFIG_WRITE, CONFIG_READ = 1, 2, 3, 4
DMA_ADDED, DMA_REMOVED, ADDED, GONE, HOT_RESET = 5, 6, 7, 8, 9

# SOFTCARD_INTERRUPT_*
MSIX, MSI, ASSERT, RELEASE = 0, 1, 2, 3

RANGE_MEMORY, RANGE_SHADOW = 0, 1
MAP_FUNCTION = 1 << 48

CREATE = struct.Struct("<4I48x")
FUNCTION_INFO = struct.Struct("<2I6Q2H2B2xII5H62x")
RANGE = struct.Struct("<4I3Q32x")
PLUG = struct.Struct("<2I2H20x")
INTERRUPT = struct.Struct("<4I")
EVENTFD = struct.Struct("<3Ii16x")
DMA = struct.Struct("<4IQ16x")
ERROR = struct.Struct("<2I8x")

_NONE, _WRITE, _READ_WRITE = 0, 1, 3


def _command(direction: int, number: int, size: int = 0) -> int:
    """As _IOC() of the kernel makes it."""
    return direction << 30 | size << 16 | 0xE5 << 8 | number


GET_API = _command(_NONE, 0x00)
CREATE_CARD = _command(_WRITE, 0x01, CREATE.size)
SET_FUNCTION = _command(_WRITE, 0x10, FUNCTION_INFO.size)
ADD_RANGE = _command(_WRITE, 0x11, RANGE.size)
PLUG_CARD = _command(_READ_WRITE, 0x12, PLUG.size)
UNPLUG = _command(_NONE, 0x13)
PULL = _command(_NONE, 0x14)
ARM = _command(_NONE, 0x15)
WAKE = _command(_NONE, 0x16)
SEND_INTERRUPT = _command(_WRITE, 0x17, INTERRUPT.size)
SET_EVENTFD = _command(_WRITE, 0x18, EVENTFD.size)
TRANSFER = _command(_READ_WRITE, 0x19, DMA.size)
SEND_ERROR = _command(_WRITE, 0x1A, ERROR.size)
