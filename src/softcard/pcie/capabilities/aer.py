"""Advanced error reporting (PCI Express Base 6.0, section 7.8.4)."""

from __future__ import annotations

import enum

from softcard.pcie.capability import ExtendedCapability
from softcard.pcie.register import RO, W1C, Field, Register, RegisterArray


class ErrorMessage(enum.IntEnum):
    """The messages by which a function tells its root port of an error (section 2.2.8.3)."""

    CORRECTABLE = 0
    NON_FATAL = 1
    FATAL = 2


class UncorrectableErrors(Register):
    """A bit for each uncorrectable error that an endpoint can detect (section 7.8.4.2)."""

    data_link_protocol = Field(4)
    poisoned_tlp = Field(12)
    flow_control_protocol = Field(13)
    completion_timeout = Field(14)
    completer_abort = Field(15)
    unexpected_completion = Field(16)
    receiver_overflow = Field(17)
    malformed_tlp = Field(18)
    ecrc = Field(19)
    unsupported_request = Field(20)
    uncorrectable_internal = Field(22)


class UncorrectableMask(UncorrectableErrors):
    """Which of them are not reported (section 7.8.4.3)."""

    uncorrectable_internal = Field(22, reset=1)


class UncorrectableSeverity(UncorrectableErrors):
    """Which of them are fatal (section 7.8.4.4)."""

    data_link_protocol = Field(4, reset=1)
    # A port's, and hardwired to its default here.
    surprise_down = Field(5, access=RO, reset=1)
    flow_control_protocol = Field(13, reset=1)
    receiver_overflow = Field(17, reset=1)
    malformed_tlp = Field(18, reset=1)
    uncorrectable_internal = Field(22, reset=1)


class CorrectableErrors(Register):
    """A bit for each correctable error (section 7.8.4.5)."""

    receiver_error = Field(0)
    bad_tlp = Field(6)
    bad_dllp = Field(7)
    replay_rollover = Field(8)
    replay_timeout = Field(12)
    advisory_non_fatal = Field(13)
    corrected_internal = Field(14)
    header_log_overflow = Field(15)


class CorrectableMask(CorrectableErrors):
    """Which of them are not reported (section 7.8.4.6)."""

    advisory_non_fatal = Field(13, reset=1)
    corrected_internal = Field(14, reset=1)
    header_log_overflow = Field(15, reset=1)


class ErrorControl(Register):
    """Advanced error capabilities and control (section 7.8.4.7)."""

    first_error_pointer = Field(4, 0, access=RO)
    ecrc_generation_capable = Field(5, access=RO)
    ecrc_generation_enable = Field(6, access=RO)
    ecrc_check_capable = Field(7, access=RO)
    ecrc_check_enable = Field(8, access=RO)


class AdvancedErrorReporting(ExtendedCapability):
    """What errors happened, which are reported, and the header of the packet that was at fault.

             31              20 19   16 15             0
            +-----------------+-------+---------------+
        00h | next offset     |version| id (0001h)    |
            +-----------------+-------+---------------+
        04h | uncorrectable error status              |
        08h | uncorrectable error mask                |
        0Ch | uncorrectable error severity            |
        10h | correctable error status                |
        14h | correctable error mask                  |
        18h | capabilities and control                |
        1Ch | header log, four dwords                 |
            +-----------------------------------------+

    All registers are sticky.
    """

    id = 0x0001
    version = 2
    size = 0x2C

    uncorrectable_status = UncorrectableErrors(0x04, access=W1C, sticky=True)
    uncorrectable_mask = UncorrectableMask(0x08, sticky=True)
    uncorrectable_severity = UncorrectableSeverity(0x0C, sticky=True)
    correctable_status = CorrectableErrors(0x10, access=W1C, sticky=True)
    correctable_mask = CorrectableMask(0x14, sticky=True)
    control = ErrorControl(0x18, sticky=True)
    header_log = RegisterArray(Register(0x1C, access=RO, sticky=True), count=4)
