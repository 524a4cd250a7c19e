"""What a server says about its card, checked before anything is built from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from softcard.bridge.vfio_user.client import Client, RefusedError
from softcard.errors import PlugError
from softcard.pcie.capabilities import Msi, MsiX, PowerManagement
from softcard.pcie.capability import Capability
from softcard.pcie.config import BAR_COUNT, CONFIG_SIZE, MIN_BAR_SIZE, BarLayout, Identity
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Command, FormatError, Irq, Region

CONFIG_SIZE_STANDARD = 256
MAX_INFO = 1 << 16
MAX_IRQS = {Irq.INTX: 1, Irq.MSI: 32, Irq.MSIX: 2048}
# Offsets of the header (PCI Express Base 6.0, section 7.5.1) and in capabilities.
VENDOR, DEVICE, STATUS, REVISION, CLASS, HEADER_TYPE, BARS = (
    0x00,
    0x02,
    0x06,
    0x08,
    0x09,
    0x0E,
    0x10,
)
SUBSYSTEM_VENDOR, SUBSYSTEM, CAPABILITIES, INTERRUPT_PIN = 0x2C, 0x2E, 0x34, 0x3D
HAS_CAPABILITIES, MULTI_FUNCTION = 1 << 4, 0x80
IO_SPACE, TYPE_MASK, TYPE_64, PREFETCHABLE = 0x1, 0x6, 0x4, 0x8
POWER_MANAGEMENT, MSI, PCI_EXPRESS, MSIX = 0x01, 0x05, 0x10, 0x11
CAPABILITIES_START = 0x40
HAS_FLR = 1 << 28


@dataclass(frozen=True)
class RegionInfo:
    """One region; `areas`, offset and size, can be mapped."""

    size: int = 0
    readable: bool = False
    writable: bool = False
    areas: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class RegionFile:
    """A region's memory: what is at an offset of the region is at `base` more in the file."""

    fd: int
    base: int


@dataclass(frozen=True)
class Found:
    """A capability in the server's configuration space."""

    id: int
    at: int
    control: int
    words: tuple[int, int]


@dataclass(frozen=True)
class Description:
    """All of it. Two that are equal are of cards that a driver cannot tell apart.

    Attributes:
        resets: the server resets the card when asked to.
        regions: what the regions are, by number.
        irqs: interrupts of each type.
        identity: the function's ids.
        bars: shapes by number.
        io_bars: the BARs that the server has in I/O space.
        capabilities: those that matter here, by id.
    """

    resets: bool
    regions: tuple[RegionInfo, ...]
    irqs: tuple[int, ...]
    identity: Identity
    bars: tuple[tuple[int, BarLayout], ...]
    io_bars: tuple[int, ...]
    capabilities: tuple[Found, ...]

    def declared(self) -> dict[str, Capability]:
        """The capabilities, as a card would declare them.

        Raises:
            DeclarationError: they contradict themselves.
        """
        made: dict[str, Capability] = {}
        for found in self.capabilities:
            low, high = found.words
            if found.id == POWER_MANAGEMENT:
                made["power_management"] = PowerManagement(
                    at=found.at,
                    d1=bool(found.control & 1 << 9),
                    d2=bool(found.control & 1 << 10),
                    no_soft_reset=bool(low & 1 << 3),
                )
            elif found.id == MSI:
                made["msi"] = Msi(
                    at=found.at,
                    vectors=1 << (found.control >> 1 & 7),
                    address64=bool(found.control & 1 << 7),
                    masking=bool(found.control & 1 << 8),
                )
            elif found.id == MSIX:
                made["msix"] = MsiX(
                    at=found.at,
                    vectors=(found.control & 0x7FF) + 1,
                    table=(low & 7, low & ~7),
                    pba=(high & 7, high & ~7),
                )
        return made

    @property
    def flr_control(self) -> int | None:
        """Where a driver starts a function level reset: the offset of device control."""
        for found in self.capabilities:
            if found.id == PCI_EXPRESS and found.words[0] & HAS_FLR:
                return found.at + 8
        return None


def describe(client: Client) -> tuple[Description, dict[int, RegionFile]]:
    """Ask for everything; the files of regions are the caller's.

    Raises:
        LostError: the connection has ended, or the server breaks the protocol.
        PlugError: the card is none that can be bridged.
        DeclarationError: its ids or BARs are impossible.
    """
    try:
        return _describe(client)
    except RefusedError as error:
        raise PlugError(f"it refuses {error}") from None


def _describe(client: Client) -> tuple[Description, dict[int, RegionFile]]:
    room = wire.DEVICE_INFO.size
    query = wire.DEVICE_INFO.pack(room, 0, 0, 0)
    reply = client.ask(Command.DEVICE_GET_INFO, query, least=room, most=MAX_INFO)
    _, flags, regions, irqs = wire.DEVICE_INFO.unpack_from(reply)
    if not flags & wire.DEVICE_IS_PCI:
        raise PlugError("its device is no PCI device")
    if regions <= Region.CONFIG:
        raise PlugError(f"it has {regions} regions, and configuration space is the eighth")
    files: dict[int, RegionFile] = {}
    try:
        infos = []
        for index in range(Region.CONFIG + 1):
            info, file = _region(client, index)
            infos.append(info)
            if file is not None:
                files[index] = file
        counts = tuple(_count_irqs(client, kind) if kind < irqs else 0 for kind in MAX_IRQS)
        return _look(client, bool(flags & wire.DEVICE_RESETS), infos, counts), files
    except BaseException:
        close_files(files)
        raise


def close_files(files: dict[int, RegionFile]) -> None:
    """Close the descriptors."""
    for file in files.values():
        os.close(file.fd)
    files.clear()


def _region(client: Client, index: int) -> tuple[RegionInfo, RegionFile | None]:
    room = wire.REGION_INFO.size
    reply, fds = _ask_region(client, index, room, room)
    needed = int.from_bytes(reply[:4], "little")
    if needed > room:
        _close(fds)
        if needed > MAX_INFO:
            raise PlugError(f"its description of region {index} is said to have {needed} bytes")
        reply, fds = _ask_region(client, index, needed, needed)
    try:
        _, flags, got, _, size, base = wire.REGION_INFO.unpack_from(reply)
        if got != index or len(fds) > 1:
            raise PlugError(f"asked for region {index}, it describes {got} with {len(fds)} files")
        sparse = wire.sparse_areas(reply)
    except (FormatError, PlugError) as error:
        _close(fds)
        raise PlugError(str(error)) from None
    mapped = bool(flags & wire.REGION_MMAP and fds)
    whole = [(0, size)] if size else []
    areas = (whole if sparse is None else sparse) if mapped else []
    end = 0
    for offset, length in sorted(areas):
        if offset < end or not length or offset + length > size:
            _close(fds)
            raise PlugError(
                f"memory of {length:#x} bytes at {offset:#x} overlaps other memory of region "
                f"{index}, or reaches beyond its {size:#x} bytes"
            )
        end = offset + length
    info = RegionInfo(
        size,
        bool(flags & wire.REGION_READABLE),
        bool(flags & wire.REGION_WRITABLE),
        tuple(areas),
    )
    if mapped:
        return info, RegionFile(fds[0], base)
    _close(fds)
    return info, None


def _ask_region(client: Client, index: int, room: int, most: int) -> tuple[bytes, list[int]]:
    query = wire.REGION_INFO.pack(room, 0, index, 0, 0, 0)
    return client.ask_for_files(
        Command.DEVICE_GET_REGION_INFO, query, least=wire.REGION_INFO.size, most=most
    )


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _count_irqs(client: Client, kind: Irq) -> int:
    room = wire.IRQ_INFO.size
    query = wire.IRQ_INFO.pack(room, 0, kind, 0)
    try:
        reply = client.ask(Command.DEVICE_GET_IRQ_INFO, query, least=room)
    except RefusedError:
        return 0
    _, _, got, count = wire.IRQ_INFO.unpack(reply)
    if got != kind or count > MAX_IRQS[kind]:
        raise PlugError(f"it has {count} interrupts of type {got}, asked for {kind.name}")
    return int(count)


def _look(
    client: Client, resets: bool, infos: list[RegionInfo], irqs: tuple[int, ...]
) -> Description:
    config_size = infos[Region.CONFIG].size
    if not CONFIG_SIZE_STANDARD <= config_size <= CONFIG_SIZE:
        raise PlugError(f"its configuration space has {config_size} bytes")
    access = wire.ACCESS.pack(0, Region.CONFIG, CONFIG_SIZE_STANDARD)
    expected = wire.ACCESS.size + CONFIG_SIZE_STANDARD
    config = client.ask(Command.REGION_READ, access, least=expected)[wire.ACCESS.size :]
    if config[HEADER_TYPE] & ~MULTI_FUNCTION:
        raise PlugError(f"its header is of type {config[HEADER_TYPE]}, so it is no endpoint")
    bars, io_bars = _bars(config, infos)
    pin = config[INTERRUPT_PIN] if irqs[Irq.INTX] else 0
    identity = Identity(
        vendor_id=_number(config, VENDOR, 2),
        device_id=_number(config, DEVICE, 2),
        revision_id=config[REVISION],
        class_code=_number(config, CLASS, 3),
        subsystem_vendor_id=_number(config, SUBSYSTEM_VENDOR, 2),
        subsystem_id=_number(config, SUBSYSTEM, 2),
        interrupt_pin=pin,
    )
    return Description(
        resets, tuple(infos), irqs, identity, bars, io_bars, tuple(_capabilities(config))
    )


def _number(config: bytes, at: int, size: int) -> int:
    return int.from_bytes(config[at : at + size], "little")


def _bars(
    config: bytes, infos: list[RegionInfo]
) -> tuple[tuple[tuple[int, BarLayout], ...], tuple[int, ...]]:
    found, io = [], []
    for number in range(BAR_COUNT):
        size = infos[number].size
        if not size:
            continue
        flags = _number(config, BARS + 4 * number, 4)
        # A BAR's size is a power of two, a region's may be anything.
        rounded = 1 << max(size - 1, MIN_BAR_SIZE - 1).bit_length()
        if flags & IO_SPACE:
            io.append(number)
            found.append((number, BarLayout(rounded)))
        else:
            bits = 64 if flags & TYPE_MASK == TYPE_64 else 32
            found.append((number, BarLayout(rounded, bits, bool(flags & PREFETCHABLE))))
    return tuple(found), tuple(io)


def _capabilities(config: bytes) -> list[Found]:
    found: list[Found] = []
    seen: set[int] = set()
    at = config[CAPABILITIES] & ~3 if _number(config, STATUS, 2) & HAS_CAPABILITIES else 0
    while at:
        if at in seen or at < CAPABILITIES_START:
            raise PlugError(f"its list of capabilities leads to {at:#x}")
        seen.add(at)
        ident = config[at]
        if ident in (POWER_MANAGEMENT, MSI, PCI_EXPRESS, MSIX):
            control = _number(config, at + 2, 2)
            words = (_number(config, at + 4, 4), _number(config, at + 8, 4))
            found.append(_fixed(ident, at, control, words))
        at = config[at + 1] & ~3
    return found


def _fixed(ident: int, at: int, control: int, words: tuple[int, int]) -> Found:
    """What of a capability a driver cannot change."""
    if ident == POWER_MANAGEMENT:
        return Found(ident, at, control, (words[0] & 1 << 3, 0))
    if ident == MSI:
        return Found(ident, at, control & 0x18E, (0, 0))
    if ident == MSIX:
        return Found(ident, at, control & 0x7FF, words)
    return Found(ident, at, control, (words[0], 0))
