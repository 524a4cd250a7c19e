"""The virtio-pcidev protocol (linux/virtio_pcidev.h).

Message, in the command queue from the guest, in the interrupt queue to it:

0    1     2          4        8             16
+----+-----+----------+--------+-------------+--------
| op | BAR | reserved | size 4 | address 8   | data
+----+-----+----------+--------+-------------+--------
"""

from __future__ import annotations

import enum
import struct

HEADER = struct.Struct("<BBHIQ")
COMMANDS, INTERRUPTS = 0, 1
INTA = 1


class Op(enum.IntEnum):
    """What a message is."""

    CFG_READ = 1
    CFG_WRITE = 2
    MMIO_READ = 3
    MMIO_WRITE = 4
    MMIO_MEMSET = 5
    INT = 6
    MSI = 7
    PME = 8


CFG_READ, CFG_WRITE, MMIO_READ, MMIO_WRITE, MMIO_MEMSET = list(Op)[:5]

INTX = HEADER.pack(Op.INT, 0, 0, 0, INTA)


def pack_msi(address: int, data: int) -> bytes:
    """An MSI or MSI-X message."""
    return HEADER.pack(Op.MSI, 0, 0, 4, address) + data.to_bytes(4, "little")
