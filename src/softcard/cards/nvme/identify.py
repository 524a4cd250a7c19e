"""Identify (NVMe 1.4, section 5.15)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from softcard.cards.nvme.command import ALL_NAMESPACES, AdminOpcode, Command, Handler
from softcard.cards.nvme.events import LOG_ENTRIES, NAMESPACE_NOTICES, REQUEST_LIMIT
from softcard.cards.nvme.health import CRITICAL_TEMPERATURE, WARNING_TEMPERATURE
from softcard.cards.nvme.layout import Layout
from softcard.cards.nvme.memory import HostMemory
from softcard.cards.nvme.namespace import (
    BLOCK_SHIFTS,
    EUI64_PREFIX,
    GRANULE,
    MAX_NAMESPACES,
    Namespace,
    Namespaces,
)
from softcard.cards.nvme.registers import PAGE_SIZE_MIN, VERSION_1_4
from softcard.cards.nvme.status import CommandError, Status

SIZE = 4096
CONTROLLER_ID = 0
LIST_ENTRIES = SIZE // 4
NQN_PREFIX = "nqn.2014-08.org.nvmexpress:uuid:"

# Figure 247.
CONTROLLER = Layout(
    SIZE,
    {
        "vid": (0, 2),
        "ssvid": (2, 2),
        "sn": (4, 20),
        "mn": (24, 40),
        "fr": (64, 8),
        "rab": (72, 1),
        "ieee": (73, 3),
        "mdts": (77, 1),
        "cntlid": (78, 2),
        "ver": (80, 4),
        "rtd3r": (84, 4),
        "rtd3e": (88, 4),
        "oaes": (92, 4),
        "ctratt": (96, 4),
        "cntrltype": (111, 1),
        "oacs": (256, 2),
        "acl": (258, 1),
        "aerl": (259, 1),
        "frmw": (260, 1),
        "lpa": (261, 1),
        "elpe": (262, 1),
        "npss": (263, 1),
        "avscc": (264, 1),
        "wctemp": (266, 2),
        "cctemp": (268, 2),
        "tnvmcap": (280, 16),
        "unvmcap": (296, 16),
        "fwug": (319, 1),
        "sqes": (512, 1),
        "cqes": (513, 1),
        "nn": (516, 4),
        "oncs": (520, 2),
        "fuses": (522, 2),
        "fna": (524, 1),
        "vwc": (525, 1),
        "awun": (526, 2),
        "awupf": (528, 2),
        "mnan": (540, 4),
        "subnqn": (768, 256),
        "psd0": (2048, 32),
    },
)

# Figure 245.
NAMESPACE = Layout(
    SIZE,
    {
        "nsze": (0, 8),
        "ncap": (8, 8),
        "nuse": (16, 8),
        "nsfeat": (24, 1),
        "nlbaf": (25, 1),
        "flbas": (26, 1),
        "mc": (27, 1),
        "dpc": (28, 1),
        "dps": (29, 1),
        "nmic": (30, 1),
        "rescap": (31, 1),
        "fpi": (32, 1),
        "dlfeat": (33, 1),
        "nvmcap": (48, 16),
        "npwg": (64, 2),
        "npwa": (66, 2),
        "npdg": (68, 2),
        "npda": (70, 2),
        "nsattr": (99, 1),
        "nguid": (104, 16),
        "eui64": (120, 8),
        "lbaf": (128, 64),
    },
)

# Figure 248.
POWER_STATE = Layout(32, {"mp": (0, 2), "enlat": (4, 4), "exlat": (8, 4)})
# Technical proposal 4056, which came after 1.4: Linux asks for both of every controller, and would
# fill the error log of one that refuses. All that they could add here is the largest write zeroes.
NVM_COMMAND_SET = 0
NVM_CONTROLLER = Layout(SIZE, {"wzsl": (1, 1)})
LARGEST_WRITE_ZEROES = 1 << 25
GRANULARITY_LIST = Layout(SIZE, {"nga": (0, 4), "nod": (4, 1), "nsg": (32, 8), "ncg": (40, 8)})

FORMAT_NVM, FIRMWARE, NAMESPACE_MANAGEMENT, DOORBELL_BUFFERS = 1 << 1, 1 << 2, 1 << 3, 1 << 8
NAMESPACE_GRANULARITY = 1 << 7
COMPARE, DATASET_MANAGEMENT, WRITE_ZEROES, SAVE, TIMESTAMP, VERIFY = (
    1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 6, 1 << 7,
)  # fmt: skip
EFFECTS_LOG, EXTENDED_LOG_DATA = 1 << 1, 1 << 2
WRITE_CACHE, FLUSH_ALL = 1 << 0, 0b11 << 1
SLOT_1_READ_ONLY, ONE_SLOT = 1 << 0, 1 << 1
IO_CONTROLLER = 1
PREFERRED_GRANULES = 1 << 4
READS_ZERO, DEALLOCATE_BY_WRITE_ZEROES = 0b001, 1 << 3
WRITE_PROTECTED = 1 << 0
MAX_POWER = 2500
"""In hundredths of a watt."""
RESUME_TIME = 1_000_000
"""In microseconds."""
EUI64, NGUID, UUID = (1, 8), (2, 16), (3, 16)
"""Type and length of a namespace identification descriptor (figure 251)."""


@dataclass(frozen=True)
class Identity:
    """What the card says about itself.

    Attributes:
        serial: at most 20 printable characters.
        model: at most 40.
        firmware: at most 8.
        unique: stands for the NVM subsystem; follows from the serial number and the model.
    """

    vendor_id: int
    subsystem_vendor_id: int
    serial: str
    model: str
    firmware: str

    @property
    def unique(self) -> uuid.UUID:
        """See the class."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{self.model}\n{self.serial}")


class Identify:
    """Answers every form of the command that a 1.4 controller without virtualization, NVM sets
    and endurance groups has; the others are invalid fields.

    Args:
        identity: what the card says about itself.
        namespaces: what it has.
        memory: where the answer goes.
        max_transfer: bytes that one command may move.
        doorbell_buffers: whether doorbells in memory are offered now.
    """

    def __init__(
        self,
        identity: Identity,
        namespaces: Namespaces,
        memory: HostMemory,
        *,
        max_transfer: int,
        doorbell_buffers: Callable[[], bool],
    ) -> None:
        self.handlers: dict[int, Handler] = {AdminOpcode.IDENTIFY: self._identify}
        self._identity = identity
        self._namespaces = namespaces
        self._memory = memory
        self._max_transfer = max_transfer
        self._doorbell_buffers = doorbell_buffers
        # By controller or namespace structure (CNS), figure 244.
        self._structures: dict[int, Callable[[Command], bytes]] = {
            0x00: self._active_namespace,
            0x01: self._controller,
            0x02: self._active_list,
            0x03: self._descriptors,
            0x05: self._nvm_namespace,
            0x06: self._nvm_controller,
            0x10: self._allocated_list,
            0x11: self._allocated_namespace,
            0x12: self._attached_controllers,
            0x13: self._controllers,
            0x16: self._granularity,
        }

    def _identify(self, command: Command) -> int:
        structure = self._structures.get(command.dw10 & 0xFF)
        if structure is None:
            raise CommandError(Status.INVALID_FIELD)
        self._memory.write(command.prp1, command.prp2, structure(command))
        return 0

    def _controller(self, _command: Command) -> bytes:
        identity, namespaces = self._identity, self._namespaces
        atomic_blocks = self._max_transfer >> max(BLOCK_SHIFTS)
        return CONTROLLER.pack(
            vid=identity.vendor_id,
            ssvid=identity.subsystem_vendor_id,
            sn=identity.serial,
            mn=identity.model,
            fr=identity.firmware,
            ieee=EUI64_PREFIX[::-1],
            mdts=(self._max_transfer // PAGE_SIZE_MIN).bit_length() - 1,
            cntlid=CONTROLLER_ID,
            ver=VERSION_1_4,
            rtd3r=RESUME_TIME,
            rtd3e=RESUME_TIME,
            oaes=NAMESPACE_NOTICES,
            ctratt=NAMESPACE_GRANULARITY,
            cntrltype=IO_CONTROLLER,
            oacs=FORMAT_NVM | FIRMWARE | NAMESPACE_MANAGEMENT
            | (DOORBELL_BUFFERS if self._doorbell_buffers() else 0),
            acl=3,
            aerl=REQUEST_LIMIT - 1,
            frmw=SLOT_1_READ_ONLY | ONE_SLOT,
            lpa=EFFECTS_LOG | EXTENDED_LOG_DATA,
            elpe=LOG_ENTRIES - 1,
            wctemp=WARNING_TEMPERATURE,
            cctemp=CRITICAL_TEMPERATURE,
            tnvmcap=namespaces.capacity,
            unvmcap=namespaces.unallocated,
            fwug=1,
            sqes=0x66,
            cqes=0x44,
            nn=MAX_NAMESPACES,
            oncs=COMPARE | DATASET_MANAGEMENT | WRITE_ZEROES | SAVE | TIMESTAMP | VERIFY,
            vwc=WRITE_CACHE | FLUSH_ALL,
            awun=max(atomic_blocks - 1, 0),
            subnqn=f"{NQN_PREFIX}{identity.unique}".encode(),
            psd0=POWER_STATE.pack(mp=MAX_POWER),
        )  # fmt: skip

    # Namespaces.

    def _active_namespace(self, command: Command) -> bytes:
        if command.nsid == ALL_NAMESPACES:
            return NAMESPACE.pack(**self._common())
        return self._namespace(self._namespaces.active(command.nsid))

    def _allocated_namespace(self, command: Command) -> bytes:
        return self._namespace(self._namespaces.existing(command.nsid))

    def _common(self) -> dict[str, int | bytes]:
        """What is the same for every namespace."""
        return {
            "nlbaf": len(BLOCK_SHIFTS) - 1,
            "dlfeat": READS_ZERO | DEALLOCATE_BY_WRITE_ZEROES,
            "lbaf": b"".join(struct.pack("<HBB", 0, shift, 0) for shift in BLOCK_SHIFTS),
        }

    def _namespace(self, namespace: Namespace | None) -> bytes:
        """The structure; all zero for an identifier that is not in use."""
        if namespace is None:
            return bytes(SIZE)
        # Only holes need whole granules; smaller writes are as good as any. A preferred write size
        # above the atomic one would be a stripe without a width to mkfs.xfs.
        granule = max((GRANULE >> namespace.shift) - 1, 0)
        return NAMESPACE.pack(
            nsze=namespace.blocks,
            ncap=namespace.blocks,
            nuse=namespace.blocks,
            nsfeat=PREFERRED_GRANULES,
            flbas=namespace.format,
            nvmcap=namespace.store.size,
            npdg=granule,
            npda=granule,
            nsattr=WRITE_PROTECTED if namespace.store.read_only else 0,
            nguid=namespace.nguid,
            eui64=namespace.eui64,
            **self._common(),
        )

    def _descriptors(self, command: Command) -> bytes:
        namespace = self._namespaces.active(command.nsid)
        if namespace is None:
            raise CommandError(Status.INVALID_FIELD)
        data = b""
        for (kind, length), value in (
            (EUI64, namespace.eui64),
            (NGUID, namespace.nguid),
            (UUID, namespace.uuid.bytes),
        ):
            data += struct.pack("<BBxx", kind, length) + value
        return data.ljust(SIZE, b"\0")

    def _nvm_namespace(self, command: Command) -> bytes:
        if command.dw11 >> 24 != NVM_COMMAND_SET:
            raise CommandError(Status.INVALID_FIELD)
        if command.nsid != ALL_NAMESPACES:
            self._namespaces.active(command.nsid)
        return bytes(SIZE)

    def _nvm_controller(self, command: Command) -> bytes:
        if command.dw11 >> 24 != NVM_COMMAND_SET:
            raise CommandError(Status.INVALID_FIELD)
        return NVM_CONTROLLER.pack(wzsl=(LARGEST_WRITE_ZEROES // PAGE_SIZE_MIN).bit_length() - 1)

    def _active_list(self, command: Command) -> bytes:
        return self._list(command, lambda namespace: namespace.attached)

    def _allocated_list(self, command: Command) -> bytes:
        return self._list(command, lambda namespace: True)

    def _list(self, command: Command, wanted: Callable[[Namespace], bool]) -> bytes:
        """Identifiers above the command's, ascending."""
        if command.nsid >= ALL_NAMESPACES - 1:
            raise CommandError(Status.INVALID_NAMESPACE)
        found = sorted(
            n.nsid for n in self._namespaces.by_id.values() if n.nsid > command.nsid and wanted(n)
        )[:LIST_ENTRIES]
        return struct.pack(f"<{len(found)}I", *found).ljust(SIZE, b"\0")

    # Controllers: there is one.

    def _attached_controllers(self, command: Command) -> bytes:
        if command.nsid == ALL_NAMESPACES:
            raise CommandError(Status.INVALID_FIELD)
        namespace = self._namespaces.existing(command.nsid)
        if namespace is None:
            raise CommandError(Status.INVALID_FIELD)
        return self._controller_list(command, namespace.attached)

    def _controllers(self, command: Command) -> bytes:
        return self._controller_list(command, True)

    def _controller_list(self, command: Command, there: bool) -> bytes:
        """Controllers from the command's identifier on."""
        found = [CONTROLLER_ID] if there and command.dw10 >> 16 <= CONTROLLER_ID else []
        return struct.pack(f"<H{len(found)}H", len(found), *found).ljust(SIZE, b"\0")

    def _granularity(self, _command: Command) -> bytes:
        return GRANULARITY_LIST.pack(nsg=GRANULE, ncg=GRANULE)
