"""Each capability: its layout, what its options change, and what a driver can do to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from softcard.errors import DeclarationError
from softcard.pcie.capabilities import (
    AdvancedErrorReporting,
    DeviceSerialNumber,
    Msi,
    PciExpress,
    PowerManagement,
    RawCapability,
    RawExtendedCapability,
    VendorSpecific,
    VendorSpecificExtended,
)
from softcard.pcie.capability import Capability, ExtendedCapability
from softcard.pcie.config import ConfigSpace, Identity
from softcard.pcie.register import hooks_of

C = TypeVar("C", bound=Capability)


def place(declared: C) -> tuple[ConfigSpace, C]:
    """A configuration space that has the capability, and the one that lives in it."""
    others: list[Capability] = []
    if isinstance(declared, ExtendedCapability):
        others.append(PciExpress())
    config = ConfigSpace(Identity(0x1DED, 1), {}, [declared, *others])
    placed = config.capabilities[0]
    assert isinstance(placed, type(declared))
    return config, placed


# Power management


def test_pmc_shows_the_supported_states() -> None:
    config, pm = place(PowerManagement(d1=True, d2=True, pme=(0, 3, 4)))
    assert config.read(pm.base, 4) == 0b11001_1_1_000_0_0_0_011 << 16 | 0x01
    config, pm = place(PowerManagement())
    assert config.read(pm.base, 4) == 0x0003_0001


def test_no_soft_reset_is_as_declared() -> None:
    assert place(PowerManagement())[1].pmcsr.no_soft_reset == 1
    assert place(PowerManagement(no_soft_reset=False))[1].pmcsr.no_soft_reset == 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_power_state_that_does_not_exist_is_ignored(size: int) -> None:
    config, pm = place(PowerManagement(d2=True))
    states = []
    for state in (3, 1, 2, 1, 0):
        config.write(pm.base + 4, size, state)
        states.append(pm.pmcsr.power_state)
    assert states == [3, 3, 2, 2, 0]


def test_the_other_bits_of_a_write_with_an_unsupported_state_count() -> None:
    config, pm = place(PowerManagement(pme=(0,)))
    config.write(pm.base + 4, 2, 0x0101)
    assert (pm.pmcsr.power_state, pm.pmcsr.pme_enable) == (0, 1)


def test_pme_bits_survive_a_reset_only_where_pme_works_without_power() -> None:
    for states, left in (((0, 4), 1), ((0, 3), 0)):
        config, pm = place(PowerManagement(pme=states))
        pm.pmcsr.pme_status = pm.pmcsr.pme_enable = 1
        config.restore(power_on=False)
        assert (pm.pmcsr.pme_status, pm.pmcsr.pme_enable) == (left, left)
        config.restore(power_on=True)
        assert (pm.pmcsr.pme_status, pm.pmcsr.pme_enable) == (0, 0)


def test_pme_status_is_cleared_by_writing_one() -> None:
    config, pm = place(PowerManagement(pme=(3,)))
    pm.pmcsr.pme_status = 1
    config.write(pm.base + 4, 2, 0x0000)
    assert pm.pmcsr.pme_status == 1
    config.write(pm.base + 4, 2, 0x8000)
    assert pm.pmcsr.pme_status == 0


def test_without_pme_its_bits_cannot_be_set() -> None:
    config, pm = place(PowerManagement())
    config.write(pm.base + 4, 2, 0xFFFF)
    assert config.read(pm.base + 4, 2) == 0x000B


# MSI


@pytest.mark.parametrize(
    ("address64", "masking", "size", "data", "control"),
    [
        (False, False, 0x0A, 0x08, 0x0006),
        (True, False, 0x0E, 0x0C, 0x0086),
        (False, True, 0x14, 0x08, 0x0106),
        (True, True, 0x18, 0x0C, 0x0186),
    ],
)
def test_the_layout_of_msi_follows_its_options(
    address64: bool, masking: bool, size: int, data: int, control: int
) -> None:
    config, msi = place(Msi(vectors=8, address64=address64, masking=masking))
    assert msi.size == size
    assert config.read(msi.base + 2, 2) == control
    for at in range(4, size, 2):
        config.write(msi.base + at, 2, 0xFFFF)
    assert msi.address_low.value == 0xFFFFFFFC
    assert msi.data.at == msi.base + data and msi.data.value == 0xFFFF
    assert (msi.address_high is not None) is address64
    assert (msi.mask is not None) is (msi.pending is not None) is masking
    if msi.address_high is not None:
        assert msi.address_high.at == msi.base + 8 and msi.address_high.value == 0xFFFFFFFF
    if msi.mask is not None and msi.pending is not None:
        assert msi.mask.at == msi.base + data + 4 and msi.mask.value == 0xFF
        assert msi.pending.at == msi.base + data + 8 and msi.pending.value == 0


@pytest.mark.parametrize(
    ("vectors", "granted", "allocated"), [(1, 0, 1), (8, 0, 1), (8, 2, 4), (8, 5, 8), (32, 7, 32)]
)
def test_no_more_vectors_are_allocated_than_asked_for_and_granted(
    vectors: int, granted: int, allocated: int
) -> None:
    config, msi = place(Msi(vectors=vectors))
    config.write(msi.base + 2, 2, granted << 4)
    assert msi.allocated == allocated


def test_a_message_carries_the_vector_in_the_low_bits_of_its_data() -> None:
    config, msi = place(Msi(vectors=8))
    config.write(msi.base + 2, 2, 0x21)
    config.write(msi.base + 4, 8, 0x2_FEE0_1000)
    config.write(msi.base + 12, 2, 0x41F3)
    assert [msi.message(vector) for vector in range(4)] == [
        (0x2_FEE0_1000, 0x41F0 + vector) for vector in range(4)
    ]


def test_the_data_of_a_single_vector_is_sent_as_it_is() -> None:
    config, msi = place(Msi(address64=False, masking=False))
    config.write(msi.base + 4, 4, 0xFEE01000)
    config.write(msi.base + 8, 2, 0x4321)
    assert msi.message(0) == (0xFEE01000, 0x4321)


# PCI Express


def test_an_endpoint_shows_its_link() -> None:
    config, express = place(PciExpress(link_speed=16, link_width=8, max_payload=512))
    assert config.read(express.base + 2, 2) == 0x0002
    assert config.read(express.base + 4, 4) == 0x1000_8FE2
    assert config.read(express.base + 0x0C, 4) == 0x0040_0084
    assert config.read(express.base + 0x12, 2) == 0x1084
    assert config.read(express.base + 0x24, 4) == 0x0001_0010
    assert config.read(express.base + 0x2C, 4) == 0b1111 << 1
    assert config.read(express.base + 0x30, 2) == 4


def test_an_integrated_endpoint_has_no_link() -> None:
    config, express = place(PciExpress(integrated=True))
    assert config.read(express.base + 2, 2) == 0x0092
    assert express.link_control is None
    for at in (0x0C, 0x10, 0x2C, 0x30):
        config.write(express.base + at, 4, 0xFFFFFFFF)
        assert config.read(express.base + at, 4) == 0
    assert express.size == 0x3C


def test_device_control_starts_as_the_specification_says() -> None:
    config, express = place(PciExpress())
    assert config.read(express.base + 8, 2) == 0x2810


@pytest.mark.parametrize(
    ("offset", "size", "value"), [(8, 2, 0xA810), (8, 4, 0x8000), (9, 1, 0x80)]
)
def test_initiate_flr_reaches_the_hook_and_reads_as_zero(
    offset: int, size: int, value: int
) -> None:
    config, express = place(PciExpress())
    written: list[int] = []
    config.on_write(express.device_control, written.append)
    config.write(express.base + offset, size, value)
    assert len(written) == 1 and written[0] & PciExpress.INITIATE_FLR
    assert not config.read(express.base + 8, 2) & PciExpress.INITIATE_FLR


def test_device_status_is_cleared_by_ones() -> None:
    config, express = place(PciExpress())
    express.device_status.value = 0x3F
    config.write(express.base + 8, 4, 0x0005_2810)
    assert express.device_status.value == 0x3A
    config.write(express.base + 0x0A, 2, 0xFFFF)
    assert express.device_status.value == 0x30


def test_function_level_reset_is_announced_only_where_it_exists() -> None:
    assert place(PciExpress())[1].device_capabilities.function_level_reset == 1
    assert place(PciExpress(flr=False))[1].device_capabilities.function_level_reset == 0


def test_a_function_level_reset_leaves_the_links_settings() -> None:
    config, express = place(PciExpress())
    assert express.link_control is not None and express.link_control_2 is not None

    def settings() -> list[int]:
        assert express.link_control is not None and express.link_control_2 is not None
        return [
            express.device_control.max_payload_size,
            express.link_control.common_clock,
            express.link_control_2.target_speed,
            express.device_control.extended_tag,
        ]

    express.device_control.max_payload_size = 1
    express.device_control.extended_tag = 1
    express.link_control.common_clock = 1
    express.link_control_2.target_speed = 1
    config.restore(power_on=False, function_level=True)
    assert settings() == [1, 1, 1, 0]
    config.restore(power_on=False)
    assert settings() == [0, 0, 1, 0]
    config.restore(power_on=True)
    assert settings() == [0, 0, 3, 0]


# Advanced error reporting


def test_error_registers_start_with_the_defaults_of_the_specification() -> None:
    config, aer = place(AdvancedErrorReporting())
    registers = [config.read(aer.base + at, 4) for at in range(4, 0x2C, 4)]
    assert registers == [0, 1 << 22, 0x0046_2030, 0, 0xE000, 0, 0, 0, 0, 0]


def test_errors_outlive_a_reset_and_are_cleared_by_ones() -> None:
    config, aer = place(AdvancedErrorReporting())
    aer.uncorrectable_status.poisoned_tlp = aer.uncorrectable_status.malformed_tlp = 1
    aer.header_log[2].value = 0xCAFE
    aer.control.first_error_pointer = 12
    config.write(aer.base + 0x14, 4, 0)
    config.restore(power_on=False)
    assert aer.uncorrectable_status.value == 1 << 12 | 1 << 18
    assert (aer.header_log[2].value, aer.control.first_error_pointer) == (0xCAFE, 12)
    assert aer.correctable_mask.value == 0
    config.write(aer.base + 0x04, 4, 1 << 12)
    assert aer.uncorrectable_status.value == 1 << 18
    config.restore(power_on=True)
    assert (aer.uncorrectable_status.value, aer.correctable_mask.value) == (0, 0xE000)
    assert (aer.header_log[2].value, aer.control.first_error_pointer) == (0, 0)


# The others


def test_a_serial_number_is_two_dwords_the_lower_first() -> None:
    config, serial = place(DeviceSerialNumber(0x0123456789ABCDEF))
    assert config.read(serial.base, 4) == 0x0001_0003
    assert config.read(serial.base + 4, 4) == 0x89ABCDEF
    assert config.read(serial.base + 8, 4) == 0x01234567


def test_a_vendor_specific_capability_has_its_length_and_data() -> None:
    config, vendor = place(VendorSpecific(b"\x11\x22\x33\x44"))
    assert config.read(vendor.base, 4) == 0x11_07_00_09
    assert config.read(vendor.base + 4, 4) == 0x00_44_33_22
    assert vendor.size == 7


def test_a_vendor_specific_extended_capability_has_a_header_of_the_vendors() -> None:
    config, vsec = place(VendorSpecificExtended(0xBEEF, 3, b"\x11\x22\x33\x44"))
    assert config.read(vsec.base, 4) == 0x000_1_000B
    assert config.read(vsec.base + 4, 4) == 0x00C_3_BEEF
    assert config.read(vsec.base + 8, 4) == 0x44332211


def test_raw_capabilities_are_their_bytes() -> None:
    config, raw = place(RawCapability(0x13, b"\x06\x03\x00\x00"))
    assert config.read(raw.base, 4) == 0x0306_0013 | config.read(raw.base + 1, 1) << 8
    config, extended = place(RawExtendedCapability(0x18, 2, b"\x01\x02\x03\x04"))
    assert config.read(extended.base, 8) == 0x04030201_000_2_0018


@pytest.mark.parametrize(
    ("declared", "data_at"),
    [
        (VendorSpecific(b"\x12\x34", b"\xf0\x00"), 3),
        (RawCapability(0x20, b"\x12\x34", b"\xf0\x00"), 2),
        (RawExtendedCapability(0x20, 1, b"\x12\x34", b"\xf0\x00"), 4),
        (VendorSpecificExtended(1, 1, b"\x12\x34", b"\xf0\x00"), 8),
    ],
    ids=lambda c: type(c).__name__,
)
def test_raw_data_changes_where_its_mask_says_and_a_reset_restores_it(
    declared: Capability, data_at: int
) -> None:
    config, placed = place(declared)
    config.write(placed.base + data_at, 2, 0xFFFF)
    assert config.read(placed.base + data_at, 2) == 0x34F2
    config.restore(power_on=False)
    assert config.read(placed.base + data_at, 2) == 0x3412


@pytest.mark.parametrize(
    "declared",
    [
        VendorSpecific(b""),
        RawCapability(0x20, b""),
        RawExtendedCapability(0x20, 1, b""),
        VendorSpecificExtended(1, 1, b""),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_capability_may_be_its_header_alone(declared: Capability) -> None:
    config, placed = place(declared)
    assert config.read(placed.base, 1) == placed.id & 0xFF
    assert config.read(placed.base + placed.size, 1) in (0, PciExpress.id)


def test_a_card_may_define_a_capability_of_its_own() -> None:
    class Scratch(VendorSpecific):
        def setup(self) -> None:
            super().setup()
            self.length.value = 0x55

    config, scratch = place(Scratch(b"abc"))
    assert config.read(scratch.base + 2, 1) == 0x55
    assert hooks_of(scratch) == []


@pytest.mark.parametrize(
    ("declare", "complaint"),
    [
        (lambda: PowerManagement(pme=(1,)), "PME from power state 1"),
        (lambda: PowerManagement(pme=(5,)), "PME from power state 5"),
        (lambda: Msi(vectors=0), "0 MSI vectors"),
        (lambda: Msi(vectors=3), "3 MSI vectors"),
        (lambda: Msi(vectors=64), "64 MSI vectors"),
        (lambda: PciExpress(link_speed=3), "a link speed of 3 GT/s does not exist: .* 2.5, 5, 8"),
        (lambda: PciExpress(link_width=3), "a link of 3 lanes does not exist"),
        (lambda: PciExpress(max_payload=64), "a maximum payload of 64 bytes does not exist"),
        (lambda: VendorSpecific(bytes(190)), "vendor-specific data of 190 bytes: at most 189 fit"),
        (lambda: VendorSpecific(b"abc", b"a"), "data has 3 bytes, its writable mask 1"),
        (lambda: RawCapability(0x100, b""), "capability id 0x100 does not fit 8 bits"),
        (lambda: RawExtendedCapability(1, 16, b""), "version 16"),
        (lambda: VendorSpecificExtended(1 << 16, 1, b""), "VSEC id 0x10000"),
        (lambda: VendorSpecificExtended(1, 1, bytes(3833)), "VSEC data of 3833 bytes"),
        (lambda: DeviceSerialNumber(1 << 64), "does not fit 64 bits"),
    ],
)
def test_an_impossible_declaration_is_refused(
    declare: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(DeclarationError, match=complaint):
        declare()
