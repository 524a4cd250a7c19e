"""Status codes of completion queue entries (NVMe 1.4, section 4.6.1)."""

from __future__ import annotations

import enum
import errno

MORE = 1 << 13
DO_NOT_RETRY = 1 << 14


class Status(enum.IntEnum):
    """Status code type (bits 10:8) and status code (bits 7:0)."""

    SUCCESS = 0x000
    # Generic command status (figure 126).
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    COMMAND_ID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    PRP_OFFSET_INVALID = 0x013
    NAMESPACE_WRITE_PROTECTED = 0x020
    # Generic command status of the NVM command set (figure 127).
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    FORMAT_IN_PROGRESS = 0x084
    # Command specific status (figures 128 and 129).
    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_IDENTIFIER = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105
    INVALID_FIRMWARE_SLOT = 0x106
    INVALID_FIRMWARE_IMAGE = 0x107
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    OVERLAPPING_RANGE = 0x114
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115
    NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x116
    NAMESPACE_ALREADY_ATTACHED = 0x118
    NAMESPACE_NOT_ATTACHED = 0x11A
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11B
    CONTROLLER_LIST_INVALID = 0x11C
    # Media and data integrity errors (figure 130).
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285


# What may well succeed when the host tries again.
_TRANSIENT = frozenset(
    {
        Status.DATA_TRANSFER_ERROR,
        Status.INTERNAL_ERROR,
        Status.ABORT_REQUESTED,
        Status.ABORTED_SQ_DELETION,
        Status.NAMESPACE_NOT_READY,
        Status.FORMAT_IN_PROGRESS,
    }
)


class CommandError(Exception):
    """A command is completed with this status.

    Args:
        status: the status.
        result: dword 0 of the completion queue entry.
        lba: the first logical block that the error is about.
    """

    def __init__(self, status: Status, *, result: int = 0, lba: int = 0) -> None:
        super().__init__(status.name)
        self.status = status
        self.result = result
        self.lba = lba


# What the host itself has asked for, and what is therefore no error.
REQUESTED = frozenset({Status.ABORT_REQUESTED, Status.ABORTED_SQ_DELETION})


def status_field(status: Status) -> int:
    """Bits 15:1 of a failed command's status field, shifted down: with "do not retry" where the
    same command would fail again, and "more" where the error log has an entry about it."""
    field = int(status)
    if status not in REQUESTED:
        field |= MORE
    if status not in _TRANSIENT:
        field |= DO_NOT_RETRY
    return field


def status_of_write_error(error: OSError) -> Status:
    """What a store's failure to write means to the host."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Status.CAPACITY_EXCEEDED
    if error.errno in (errno.EROFS, errno.EPERM):
        return Status.NAMESPACE_WRITE_PROTECTED
    return Status.WRITE_FAULT
