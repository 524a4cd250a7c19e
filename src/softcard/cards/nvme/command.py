"""Submission queue entries (NVMe 1.4, section 4.2) and the opcodes of the two command sets."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Final

ENTRY_SIZE = 64
COMPLETION_SIZE = 16
ALL_NAMESPACES = 0xFFFFFFFF
_ENTRY = struct.Struct("<BBHI16xQQ6I")


class AdminOpcode(enum.IntEnum):
    """Admin commands (figure 139)."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_DOWNLOAD = 0x11
    NAMESPACE_ATTACHMENT = 0x15
    DOORBELL_BUFFER_CONFIG = 0x7C
    FORMAT_NVM = 0x80


class IoOpcode(enum.IntEnum):
    """Commands of the NVM command set (figure 346)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C


class Command:
    """One submission queue entry.

    Attributes:
        opcode: its meaning depends on the queue.
        flags: byte 1: fused operation (bits 1:0) and PRP or SGL (bits 7:6).
        cid: command identifier.
        nsid: namespace identifier.
        prp1, prp2: the data pointer.
        dw10 to dw15: command dwords.
        queue: identifier of the submission queue.
    """

    __slots__ = (
        "cid", "dw10", "dw11", "dw12", "dw13", "dw14", "dw15",
        "flags", "nsid", "opcode", "prp1", "prp2", "queue",
    )  # fmt: skip

    def __init__(self, entries: memoryview | bytes, offset: int, queue: int) -> None:
        (
            self.opcode, self.flags, self.cid, self.nsid, self.prp1, self.prp2,
            self.dw10, self.dw11, self.dw12, self.dw13, self.dw14, self.dw15,
        ) = _ENTRY.unpack_from(entries, offset)  # fmt: skip
        self.queue = queue

    @property
    def slba(self) -> int:
        """First logical block, where dwords 10 and 11 give one."""
        start: int = self.dw10 | self.dw11 << 32
        return start

    @property
    def blocks(self) -> int:
        """Number of logical blocks, where dword 12 gives one."""
        count: int = (self.dw12 & 0xFFFF) + 1
        return count


class Deferred(enum.Enum):
    """The type of `DEFERRED`."""

    DEFERRED = "completed later"


DEFERRED: Final = Deferred.DEFERRED
"""What a handler returns when it will complete its command itself, later."""

Handler = Callable[[Command], "int | Deferred"]
"""Executes a command: returns dword 0 of the completion, or raises `CommandError`."""
