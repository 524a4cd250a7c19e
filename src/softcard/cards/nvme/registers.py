"""Controller registers (NVMe 1.4, section 3.1)."""

from __future__ import annotations

from softcard.model.bar import Bar
from softcard.pcie.register import RO, Field, Register

BAR_SIZE = 0x4000
DOORBELLS = 0x1000
DOORBELLS_SIZE = 0x1000
DOORBELL_STRIDE = 4
VECTOR_TABLE = 0x2000
PENDING_BITS = 0x3000
MAX_VECTORS = 256

VERSION_1_4 = 0x00010400
PAGE_SIZE_MIN = 4096
PAGE_SIZE_CODE_MAX = 4
SHUTDOWN_NONE, SHUTDOWN_OCCURRING, SHUTDOWN_COMPLETE = range(3)


class Capabilities(Register):
    """Controller capabilities (section 3.1.1)."""

    max_queue_entries = Field(15, 0)
    contiguous_queues_required = Field(16, reset=1)
    arbitration_mechanisms = Field(18, 17)
    # In units of 500 ms: what a reset left running on a slow disk may delay readiness.
    timeout = Field(31, 24, reset=60)
    doorbell_stride = Field(35, 32)
    subsystem_reset = Field(36)
    # The NVM command set.
    command_sets = Field(44, 37, reset=1)
    page_size_min = Field(51, 48)
    page_size_max = Field(55, 52, reset=PAGE_SIZE_CODE_MAX)


class Configuration(Register):
    """Controller configuration (section 3.1.5)."""

    enable = Field(0)
    command_set = Field(6, 4)
    page_size = Field(10, 7)
    arbitration = Field(13, 11)
    shutdown = Field(15, 14)
    io_sq_entry_size = Field(19, 16)
    io_cq_entry_size = Field(23, 20)


class ControllerStatus(Register):
    """Controller status (section 3.1.6)."""

    ready = Field(0)
    fatal = Field(1)
    shutdown = Field(3, 2)


class AdminQueueAttributes(Register):
    """Sizes of the admin queues, one less than their entries (section 3.1.8)."""

    sq_size = Field(11, 0)
    cq_size = Field(27, 16)


class QueueAddress(Register):
    """Base address of an admin queue (sections 3.1.9 and 3.1.10)."""

    page = Field(63, 12)


class Registers(Bar, size=BAR_SIZE, bits=64):
    """BAR 0: registers, from 0x1000 doorbells, from 0x2000 the MSI-X table and pending bits."""

    capabilities = Capabilities(0x00, width=64, access=RO)
    version = Register(0x08, access=RO, reset=VERSION_1_4)
    interrupt_mask_set = Register(0x0C, access=RO)
    interrupt_mask_clear = Register(0x10, access=RO)
    configuration = Configuration(0x14)
    status = ControllerStatus(0x1C, access=RO)
    admin_queue_attributes = AdminQueueAttributes(0x24)
    admin_sq_address = QueueAddress(0x28, width=64)
    admin_cq_address = QueueAddress(0x30, width=64)
