"""The vfio-user protocol's messages (QEMU's docs/interop/vfio-user, version 0.1).

Every message has this header, then what its command defines:

0    2         4      8       12      16
+----+---------+------+-------+-------+-----
| id | command | size | flags | error | ...
+----+---------+------+-------+-------+-----

`size` counts the header as well. Regions, interrupts and features are those of <linux/vfio.h>.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Mapping
from typing import Any

HEADER = struct.Struct("<HHIII")
HEADER_SIZE = 16

VERSION = struct.Struct("<HH")
DMA_MAP = struct.Struct("<IIQQQ")  # argsz, flags, offset, address, size
DMA_UNMAP = struct.Struct("<IIQQ")  # argsz, flags, address, size
DEVICE_INFO = struct.Struct("<IIII")  # argsz, flags, regions, interrupt types
REGION_INFO = struct.Struct("<IIIIQQ")  # argsz, flags, index, capability, size, offset
CAPABILITY = struct.Struct("<HHI")  # id, version, next
SPARSE_MMAP = struct.Struct("<II")  # areas, reserved
AREA = struct.Struct("<QQ")  # offset, size
REGION_IO_FDS = struct.Struct("<IIII")  # argsz, flags, index, count
IRQ_INFO = struct.Struct("<IIII")  # argsz, flags, index, count
SET_IRQS = struct.Struct("<IIIII")  # argsz, flags, index, start, count
ACCESS = struct.Struct("<QII")  # offset, region, count
DMA_ACCESS = struct.Struct("<QQ")  # address, count
# As early clients in QEMU have it: the data begins at once, and four bytes behind it mean nothing.
SHORT_DMA_ACCESS = struct.Struct("<QI")
WRITE_COUNT = struct.Struct("<Q")
SHORT_WRITE = struct.Struct("<QIIQ")  # offset, region, count, data
FEATURE = struct.Struct("<II")  # argsz, flags
MIGRATION_STATE = struct.Struct("<Ii")  # state, descriptor
LOGGING_START = struct.Struct("<QII")  # page size, ranges, reserved
LOGGING_REPORT = struct.Struct("<QQQ")  # address, length, page size
MIGRATION_DATA = struct.Struct("<II")  # argsz, size

MAJOR, MINOR = 0, 1
MAX_FDS = 16
# What a peer may transfer that has said nothing.
DEFAULT_TRANSFER = 1 << 20
DEFAULT_FDS = 1
DEFAULT_PAGE_SIZES = 4096


class Command(enum.IntEnum):
    """What a message asks for."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18
    # Ours, from server to client, where no eventfd can be passed; agreed on with `INTERRUPTS`.
    INTERRUPT = 0x5343


# A capability of ours: interrupts come as messages.
INTERRUPTS = "softcard_interrupts"
INTERRUPT = struct.Struct("<III")  # type, vector, asserted

# A capability: the server's commands go over a socket of their own.
TWIN_SOCKET = "twin_socket"

# Header flags.
TYPE_MASK = 0xF
COMMAND, REPLY = 0, 1
NO_REPLY = 1 << 4
ERROR = 1 << 5

# DMA_MAP flags.
DMA_READABLE, DMA_WRITABLE = 1 << 0, 1 << 1

# DEVICE_GET_INFO flags.
DEVICE_RESETS, DEVICE_IS_PCI = 1 << 0, 1 << 1

# DEVICE_GET_REGION_INFO flags, and its one capability.
REGION_READABLE, REGION_WRITABLE, REGION_MMAP, REGION_CAPABILITIES = 1, 2, 4, 8
CAPABILITY_SPARSE_MMAP = 1


class Region(enum.IntEnum):
    """Regions of a PCI device; its BARs are regions 0 to 5."""

    BAR0 = 0
    ROM = 6
    CONFIG = 7
    VGA = 8


REGIONS = 9


class Irq(enum.IntEnum):
    """Interrupt types of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


IRQS = 5

# DEVICE_GET_IRQ_INFO flags.
IRQ_EVENTFD, IRQ_MASKABLE, IRQ_AUTOMASKED, IRQ_NORESIZE = 1, 2, 4, 8

# DEVICE_SET_IRQS flags.
DATA_NONE, DATA_BOOL, DATA_EVENTFD = 1 << 0, 1 << 1, 1 << 2
ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER = 1 << 3, 1 << 4, 1 << 5
DATA_FLAGS = DATA_NONE | DATA_BOOL | DATA_EVENTFD
ACTION_FLAGS = ACTION_MASK | ACTION_UNMASK | ACTION_TRIGGER

# DEVICE_FEATURE flags.
FEATURE_MASK = 0xFFFF
FEATURE_GET, FEATURE_SET, FEATURE_PROBE = 1 << 16, 1 << 17, 1 << 18


class Feature(enum.IntEnum):
    """Features of a device."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8


MIGRATION_STOP_COPY, MIGRATION_P2P, MIGRATION_PRE_COPY = 1, 2, 4


class MigrationState(enum.IntEnum):
    """States of the migration state machine."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    PRE_COPY = 6


class FormatError(ValueError):
    """A message is not what the protocol says; the stream can go on only if its size was right."""


def pack_version(major: int, minor: int, capabilities: Mapping[str, Any]) -> bytes:
    """The payload of VERSION; with no capabilities, as short as QEMU wants the reply."""
    data = {"capabilities": capabilities} if capabilities else {}
    text = json.dumps(data, separators=(",", ":")).encode()
    return VERSION.pack(major, minor) + text + b"\0"


def unpack_version(payload: bytes) -> tuple[int, int, dict[str, Any]]:
    """Major and minor version and capabilities.

    Raises:
        FormatError: it is no VERSION payload.
    """
    if len(payload) < VERSION.size:
        raise FormatError(f"VERSION has a payload of {len(payload)} bytes")
    major, minor = VERSION.unpack_from(payload)
    text = payload[VERSION.size :].rstrip(b"\0")
    if not text:
        return major, minor, {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the capabilities in VERSION are no JSON: {error}") from None
    capabilities = data.get("capabilities", {}) if isinstance(data, dict) else None
    if not isinstance(capabilities, dict):
        raise FormatError("the capabilities in VERSION are no JSON object")
    return major, minor, capabilities


def number_capability(capabilities: Mapping[str, Any], name: str, default: int) -> int:
    """A capability that is a positive number; `default` where it is missing.

    Raises:
        FormatError: it is something else.
    """
    value = capabilities.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FormatError(f"capability {name} is {value!r}, which is no positive number")
    return value


def offers_twin(capabilities: Mapping[str, Any]) -> bool:
    """Whether the peer can do with a second socket, for the server's commands."""
    twin = capabilities.get(TWIN_SOCKET)
    return isinstance(twin, dict) and twin.get("supported") is True


def twin_index(capabilities: Mapping[str, Any], count: int) -> int | None:
    """Which of the `count` descriptors of the server's VERSION is the second socket; None where
    there is none.

    Raises:
        FormatError: there should be one.
    """
    if not offers_twin(capabilities):
        return None
    index = capabilities[TWIN_SOCKET].get("fd_index")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise FormatError(f"its second socket is descriptor {index!r} of {count}")
    return index


def sparse_areas(payload: bytes) -> list[tuple[int, int]] | None:
    """Offset and size of the areas that a REGION_INFO reply lets the client map; None where it
    has no such capability, so that the whole region can be mapped.

    Raises:
        FormatError: the list of capabilities is broken.
    """
    _, flags, _, at, _, _ = REGION_INFO.unpack_from(payload)
    seen = set()
    while flags & REGION_CAPABILITIES and at:
        if at in seen or at < REGION_INFO.size or at + CAPABILITY.size > len(payload):
            raise FormatError(f"a region's capability is at offset {at} of {len(payload)} bytes")
        seen.add(at)
        ident, _, following = CAPABILITY.unpack_from(payload, at)
        if ident == CAPABILITY_SPARSE_MMAP:
            return _areas(payload, at + CAPABILITY.size)
        at = following
    return None


def _areas(payload: bytes, at: int) -> list[tuple[int, int]]:
    if at + SPARSE_MMAP.size > len(payload):
        raise FormatError("a region's sparse mmap capability is cut short")
    count, _ = SPARSE_MMAP.unpack_from(payload, at)
    at += SPARSE_MMAP.size
    if at + count * AREA.size > len(payload):
        raise FormatError(f"a region's sparse mmap capability has no room for {count} areas")
    return [AREA.unpack_from(payload, at + index * AREA.size) for index in range(count)]
