"""PCI Express capability of an endpoint (PCI Express Base 6.0, section 7.5.3)."""

from __future__ import annotations

from typing import ClassVar

from softcard.errors import DeclarationError
from softcard.pcie.capability import StandardCapability
from softcard.pcie.register import RO, W1C, Field, Register

VERSION = 2
ENDPOINT = 0b0000
INTEGRATED_ENDPOINT = 0b1001
LINK_SPEEDS = {2.5: 1, 5: 2, 8: 3, 16: 4, 32: 5, 64: 6}
LINK_WIDTHS = (1, 2, 4, 8, 12, 16, 32)
PAYLOADS = {128 << code: code for code in range(6)}
# From this speed on a function must complete requests with 10-bit tags (section 2.2.6.2).
TEN_BIT_TAG_SPEED = 16


class ExpressCapabilities(Register):
    """PCI Express capabilities (section 7.5.3.2)."""

    version = Field(3, 0, access=RO, reset=VERSION)
    device_port_type = Field(7, 4, access=RO)
    slot_implemented = Field(8, access=RO)
    interrupt_message_number = Field(13, 9, access=RO)


class DeviceCapabilities(Register):
    """Device capabilities (section 7.5.3.3)."""

    max_payload_supported = Field(2, 0, access=RO)
    phantom_functions = Field(4, 3, access=RO)
    extended_tag = Field(5, access=RO, reset=1)
    l0s_acceptable_latency = Field(8, 6, access=RO, reset=7)
    l1_acceptable_latency = Field(11, 9, access=RO, reset=7)
    role_based_error_reporting = Field(15, access=RO, reset=1)
    slot_power_limit_value = Field(25, 18, access=RO)
    slot_power_limit_scale = Field(27, 26, access=RO)
    function_level_reset = Field(28, access=RO)


class DeviceControl(Register):
    """Device control (section 7.5.3.4)."""

    correctable_error_reporting = Field(0)
    non_fatal_error_reporting = Field(1)
    fatal_error_reporting = Field(2)
    unsupported_request_reporting = Field(3)
    relaxed_ordering = Field(4, reset=1)
    max_payload_size = Field(7, 5, survives_flr=True)
    extended_tag = Field(8)
    phantom_functions = Field(9, access=RO)
    aux_power_pm = Field(10, access=RO)
    no_snoop = Field(11, reset=1)
    max_read_request_size = Field(14, 12, reset=2)
    initiate_flr = Field(15, access=RO)


class DeviceStatus(Register):
    """Device status (section 7.5.3.5)."""

    correctable_error = Field(0, access=W1C)
    non_fatal_error = Field(1, access=W1C)
    fatal_error = Field(2, access=W1C)
    unsupported_request = Field(3, access=W1C)
    aux_power = Field(4, access=RO)
    transactions_pending = Field(5, access=RO)


class LinkCapabilities(Register):
    """Link capabilities (section 7.5.3.6)."""

    max_speed = Field(3, 0, access=RO)
    max_width = Field(9, 4, access=RO)
    aspm_support = Field(11, 10, access=RO)
    l0s_exit_latency = Field(14, 12, access=RO)
    l1_exit_latency = Field(17, 15, access=RO)
    clock_power_management = Field(18, access=RO)
    aspm_optionality = Field(22, access=RO, reset=1)
    port_number = Field(31, 24, access=RO)


class LinkControl(Register):
    """Link control (section 7.5.3.7)."""

    aspm_control = Field(1, 0, survives_flr=True)
    read_completion_boundary = Field(3, survives_flr=True)
    common_clock = Field(6, survives_flr=True)
    extended_synch = Field(7, survives_flr=True)


class LinkStatus(Register):
    """Link status (section 7.5.3.8)."""

    current_speed = Field(3, 0, access=RO)
    negotiated_width = Field(9, 4, access=RO)
    slot_clock = Field(12, access=RO, reset=1)


class DeviceCapabilities2(Register):
    """Device capabilities 2 (section 7.5.3.15)."""

    completion_timeout_ranges = Field(3, 0, access=RO)
    completion_timeout_disable = Field(4, access=RO, reset=1)
    ten_bit_tag_completer = Field(16, access=RO)
    ten_bit_tag_requester = Field(17, access=RO)


class DeviceControl2(Register):
    """Device control 2 (section 7.5.3.16)."""

    completion_timeout_value = Field(3, 0, access=RO)
    completion_timeout_disable = Field(4)
    atomic_op_requester = Field(6)
    id_based_ordering_request = Field(8)
    id_based_ordering_completion = Field(9)


class LinkCapabilities2(Register):
    """Link capabilities 2 (section 7.5.3.18)."""

    supported_speeds = Field(7, 1, access=RO)


class LinkControl2(Register):
    """Link control 2 (section 7.5.3.19)."""

    target_speed = Field(3, 0, sticky=True)
    enter_compliance = Field(4, sticky=True)
    hardware_autonomous_speed_disable = Field(5, sticky=True)
    transmit_margin = Field(9, 7, sticky=True)
    enter_modified_compliance = Field(10, sticky=True)
    compliance_sos = Field(11, sticky=True)
    compliance_preset = Field(15, 12, sticky=True)


class LinkStatus2(Register):
    """Link status 2 (section 7.5.3.20)."""

    de_emphasis = Field(0, access=RO)
    equalization_complete = Field(1, access=RO, sticky=True)
    equalization_phase_1 = Field(2, access=RO, sticky=True)
    equalization_phase_2 = Field(3, access=RO, sticky=True)
    equalization_phase_3 = Field(4, access=RO, sticky=True)
    equalization_request = Field(5, access=W1C, sticky=True)


class PciExpress(StandardCapability):
    """What makes a function a PCI Express one, version 2 of the layout.

             31            16 15           8 7            0
            +----------------+--------------+--------------+
        00h | capabilities   | next pointer | id (10h)     |
            +----------------+--------------+--------------+
        04h | device capabilities                          |
            +----------------+-----------------------------+
        08h | device status  | device control              |
            +----------------+-----------------------------+
        0Ch | link capabilities                            |
            +----------------+-----------------------------+
        10h | link status    | link control                |
            +----------------+-----------------------------+
        14h | slot and root registers: of ports only       |
            +----------------------------------------------+
        24h | device capabilities 2                        |
            +----------------+-----------------------------+
        28h | status 2 (zero)| device control 2            |
            +----------------+-----------------------------+
        2Ch | link capabilities 2                          |
            +----------------+-----------------------------+
        30h | link status 2  | link control 2              |
            +----------------+-----------------------------+
        34h | slot registers 2: of ports only              |
            +----------------------------------------------+

    Args:
        link_speed: GT/s that the link can run and runs at: 2.5, 5, 8, 16, 32 or 64.
        link_width: lanes: 1, 2, 4, 8, 12, 16 or 32.
        max_payload: bytes of the largest packet: a power of two from 128 to 4,096.
        flr: the function has function level reset.
        integrated: it belongs to the root complex and has no link; without, it is an endpoint
            behind a port.
        at: offset in configuration space.

    Attributes:
        link_capabilities, link_control, link_status, link_capabilities_2, link_control_2,
        link_status_2: None where the function is integrated; a driver reads zero there.
        INITIATE_FLR: the bit of `device_control` that a driver writes 1 to; it always reads as
            zero, so a hook on the register looks for it in the value that was written.
    """

    id = 0x10
    size = 0x3C
    INITIATE_FLR: ClassVar[int] = DeviceControl.initiate_flr.mask

    capabilities = ExpressCapabilities(0x02, width=16)
    device_capabilities = DeviceCapabilities(0x04)
    device_control = DeviceControl(0x08, width=16)
    device_status = DeviceStatus(0x0A, width=16)
    device_capabilities_2 = DeviceCapabilities2(0x24)
    device_control_2 = DeviceControl2(0x28, width=16)
    link_capabilities: LinkCapabilities | None
    link_control: LinkControl | None
    link_status: LinkStatus | None
    link_capabilities_2: LinkCapabilities2 | None
    link_control_2: LinkControl2 | None
    link_status_2: LinkStatus2 | None

    def __init__(
        self,
        *,
        link_speed: float = 8,
        link_width: int = 4,
        max_payload: int = 256,
        flr: bool = True,
        integrated: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        for what, value, choices in (
            ("a link speed of {} GT/s", link_speed, LINK_SPEEDS),
            ("a link of {} lanes", link_width, LINK_WIDTHS),
            ("a maximum payload of {} bytes", max_payload, PAYLOADS),
        ):
            if value not in choices:
                raise DeclarationError(
                    f"{what.format(value)} does not exist: choose one of "
                    f"{', '.join(map(str, choices))}"
                )
        self.link_speed = link_speed
        self.link_width = link_width
        self.max_payload = max_payload
        self.flr = flr
        self.integrated = integrated

    def setup(self) -> None:
        """Store the options, and enter the link's registers where there is a link."""
        self.capabilities.device_port_type = INTEGRATED_ENDPOINT if self.integrated else ENDPOINT
        self.device_capabilities.max_payload_supported = PAYLOADS[self.max_payload]
        self.device_capabilities.function_level_reset = self.flr
        self.link_capabilities = self.link_control = self.link_status = None
        self.link_capabilities_2 = self.link_control_2 = self.link_status_2 = None
        if self.integrated:
            # Latencies say what the link may cost; without a link these bits are reserved.
            self.device_capabilities.l0s_acceptable_latency = 0
            self.device_capabilities.l1_acceptable_latency = 0
        else:
            self._setup_link()

    def _setup_link(self) -> None:
        speed = LINK_SPEEDS[self.link_speed]
        self.device_capabilities_2.ten_bit_tag_completer = self.link_speed >= TEN_BIT_TAG_SPEED
        capabilities = self._enter(LinkCapabilities(0x0C), "link_capabilities")
        capabilities.max_speed, capabilities.max_width = speed, self.link_width
        status = self._enter(LinkStatus(0x12, width=16), "link_status")
        status.current_speed, status.negotiated_width = speed, self.link_width
        capabilities_2 = self._enter(LinkCapabilities2(0x2C), "link_capabilities_2")
        capabilities_2.supported_speeds = (1 << speed) - 1
        control_2 = self._enter(LinkControl2(0x30, width=16), "link_control_2")
        control_2.target_speed = speed
        self.link_capabilities, self.link_status = capabilities, status
        self.link_capabilities_2, self.link_control_2 = capabilities_2, control_2
        self.link_control = self._enter(LinkControl(0x10, width=16), "link_control")
        self.link_status_2 = self._enter(LinkStatus2(0x32, width=16), "link_status_2")
