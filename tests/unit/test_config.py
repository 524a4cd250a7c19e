from __future__ import annotations

from collections.abc import Callable

import pytest

from softcard.errors import DeclarationError
from softcard.pcie.capabilities import (
    AdvancedErrorReporting,
    DeviceSerialNumber,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    RawCapability,
    RawExtendedCapability,
    VendorSpecific,
)
from softcard.pcie.config import BarLayout, ConfigSpace, Identity

IDENTITY = Identity(
    vendor_id=0x1DED,
    device_id=0x1234,
    revision_id=0x56,
    class_code=0x010802,
    subsystem_vendor_id=0xABCD,
    subsystem_id=0x9876,
    interrupt_pin=1,
)
BARS = {0: BarLayout(0x4000, bits=64, prefetchable=True), 2: BarLayout(0x1000)}


@pytest.fixture
def config() -> ConfigSpace:
    return ConfigSpace(IDENTITY, BARS, [PciExpress(), AdvancedErrorReporting()])


def test_the_header_shows_the_identity(config: ConfigSpace) -> None:
    assert config.read(0x00, 4) == 0x1234_1DED
    assert config.read(0x08, 4) == 0x010802_56
    assert config.read(0x0E, 1) == 0
    assert config.read(0x2C, 4) == 0x9876_ABCD
    assert config.read(0x3D, 1) == 1


def test_one_of_several_functions_says_so_in_the_header_type() -> None:
    assert ConfigSpace(IDENTITY, {}, multi_function=True).read(0x0E, 1) == 0x80


def test_a_card_without_capabilities_has_no_list() -> None:
    config = ConfigSpace(IDENTITY, {})
    assert config.read(0x34, 1) == 0
    assert not config.header.status.capabilities_list
    assert config.read(0x100, 4) == 0


def test_only_the_command_bits_of_a_memory_function_can_be_set(config: ConfigSpace) -> None:
    config.write(0x04, 2, 0xFFFF)
    assert config.read(0x04, 2) == 0x0546


def test_status_bits_are_cleared_by_ones_next_to_a_command_write(config: ConfigSpace) -> None:
    status = config.header.status
    status.received_master_abort = status.detected_parity_error = 1
    config.write(0x04, 4, 0x2000_0006)
    assert (status.received_master_abort, status.detected_parity_error) == (0, 1)
    assert config.read(0x04, 2) == 6


def test_a_command_write_of_16_bits_clears_no_status(config: ConfigSpace) -> None:
    config.header.status.value |= 0xF900
    config.write(0x04, 2, 0xFFFF)
    assert config.read(0x06, 2) == 0xF910
    config.write(0x07, 1, 0x80)
    assert config.read(0x06, 2) == 0x7910


def test_a_bar_that_is_not_declared_reads_zero(config: ConfigSpace) -> None:
    for offset in (0x1C, 0x20, 0x24):
        config.write(offset, 4, 0xFFFFFFFF)
        assert config.read(offset, 4) == 0


def test_there_is_no_expansion_rom(config: ConfigSpace) -> None:
    config.write(0x30, 4, 0xFFFFFFFF)
    assert config.read(0x30, 4) == 0


def test_a_64_bit_bar_is_sized_by_its_halves_together(config: ConfigSpace) -> None:
    config.write(0x10, 4, 0xFFFFFFFF)
    config.write(0x14, 4, 0xFFFFFFFF)
    assert config.read(0x10, 4) == 0xFFFFC00C
    assert config.read(0x14, 4) == 0xFFFFFFFF


def test_a_bar_keeps_the_address_it_is_given(config: ConfigSpace) -> None:
    config.write(0x10, 8, 0x12_3456_4321)
    config.write(0x18, 4, 0xFEDCB678)
    assert config.bar_address(0) == 0x12_3456_4000
    assert config.bar_address(2) == 0xFEDCB000
    assert config.read(0x10, 8) == 0x12_3456_400C


def test_a_bar_takes_its_address_byte_by_byte(config: ConfigSpace) -> None:
    for i, byte in enumerate((0x21, 0xF3, 0x65, 0x87)):
        config.write(0x18 + i, 1, byte)
    assert config.bar_address(2) == 0x8765F000


def test_interrupt_line_and_cache_line_size_are_the_drivers(config: ConfigSpace) -> None:
    config.write(0x3C, 4, 0xFFFFFFFF)
    config.write(0x0C, 4, 0xFFFFFFFF)
    assert config.read(0x3C, 4) == 0x01FF
    assert config.read(0x0C, 4) == 0xFF


def test_accesses_beyond_4_kib_are_nobodys(config: ConfigSpace) -> None:
    config.write(0x1000, 4, 0)
    config.write(0xFFE, 4, 0)
    assert config.read(0x1000, 4) == 0xFFFFFFFF
    assert config.read(0xFFE, 4) == 0xFFFFFFFF
    assert config.read(-4, 2) == 0xFFFF


def test_a_hook_hears_of_a_write_to_its_register(config: ConfigSpace) -> None:
    written: list[int] = []
    config.on_write(config.header.command, written.append)
    config.write(0x04, 4, 0x0000_0006)
    config.write(0x05, 1, 0x04)
    assert written == [6, 0x406]


def test_a_reset_forgets_all_but_sticky_bits() -> None:
    config = ConfigSpace(IDENTITY, BARS, [PciExpress(), AdvancedErrorReporting()])
    aer = config.capabilities[1]
    assert isinstance(aer, AdvancedErrorReporting)
    config.write(0x04, 2, 0x6)
    config.write(0x10, 4, 0xFE000000)
    aer.uncorrectable_status.malformed_tlp = 1
    config.restore(power_on=False)
    assert config.read(0x04, 4) == 0x0010_0000
    assert config.read(0x10, 4) == 0xC
    assert aer.uncorrectable_status.malformed_tlp
    config.restore(power_on=True)
    assert not aer.uncorrectable_status.malformed_tlp


def test_a_reset_keeps_what_is_declared() -> None:
    config = ConfigSpace(
        IDENTITY, BARS, [PowerManagement(), Msi(vectors=8), PciExpress(), AdvancedErrorReporting()]
    )
    before = bytes(config.file.storage)
    for offset in range(0, 0x1000, 4):
        config.write(offset, 4, 0xFFFFFFFF)
    config.restore(power_on=True)
    assert bytes(config.file.storage) == before


def test_capabilities_are_listed_in_the_order_of_their_declaration() -> None:
    config = ConfigSpace(
        IDENTITY, BARS, [Msi(at=0x90), PowerManagement(), VendorSpecific(b"abc", at=0x40)]
    )
    pointer, ids = config.read(0x34, 1), []
    while pointer:
        ids.append(config.read(pointer, 1))
        pointer = config.read(pointer + 1, 1)
    assert ids == [0x05, 0x01, 0x09]
    assert [c.base for c in config.capabilities] == [0x90, 0x48, 0x40]


def test_the_extended_list_starts_at_0x100_whatever_was_declared_first() -> None:
    config = ConfigSpace(
        IDENTITY,
        BARS,
        [PciExpress(), DeviceSerialNumber(5, at=0x200), AdvancedErrorReporting()],
    )
    assert config.read(0x100, 4) == 0x200_2_0001
    assert config.read(0x200, 4) == 0x000_1_0003


def test_two_configuration_spaces_of_one_declaration_share_nothing() -> None:
    declared = [PowerManagement(), MsiX(vectors=4, table=(0, 0), pba=(0, 0x800))]
    one, other = (ConfigSpace(IDENTITY, BARS, declared) for _ in range(2))
    one.write(one.capabilities[0].base + 4, 2, 3)
    one.write(one.capabilities[1].base + 2, 2, 0xFFFF)
    assert other.read(other.capabilities[0].base + 4, 2) == 8
    assert other.read(other.capabilities[1].base + 2, 2) == 3


@pytest.mark.parametrize(
    ("declare", "complaint"),
    [
        (lambda: Identity(0xFFFF, 1), "vendor_id 0xffff is out of range"),
        (lambda: Identity(0, 1), "vendor_id 0x0 is out of range"),
        (lambda: Identity(1, 0x10000), "device_id 0x10000 is out of range"),
        (lambda: Identity(1, 1, interrupt_pin=5), "interrupt_pin 0x5 is out of range: 0x0 to 0x4"),
        (lambda: BarLayout(3000), "a BAR of 3000 bytes is impossible: .* next one up is 4096"),
        (lambda: BarLayout(8), "a BAR of 8 bytes is impossible: .* next one up is 16"),
        (lambda: BarLayout(0), "a BAR of 0 bytes is impossible: .* next one up is 16"),
        (lambda: BarLayout(1 << 32), "a BAR of 4294967296 bytes is impossible"),
        (lambda: BarLayout(1 << 63, bits=64), "impossible"),
        (lambda: BarLayout(4096, bits=16), "a BAR of 16 bits"),
        (lambda: ConfigSpace(IDENTITY, {6: BarLayout(4096)}), "BAR 6 of 32 bits does not exist"),
        (
            lambda: ConfigSpace(IDENTITY, {5: BarLayout(4096, bits=64)}),
            "BAR 5 of 64 bits does not exist",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {0: BarLayout(4096, bits=64), 1: BarLayout(4096)}),
            "BAR 1 is the upper half of the 64-bit BAR 0: move it to BAR 2",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {}, [PowerManagement(at=0x50), Msi(at=0x54)]),
            "capabilities PowerManagement and Msi are in one place: 0x50 and 0x54",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {}, [PowerManagement(at=0x3C)]),
            "PowerManagement at 0x3c is impossible",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {}, [PowerManagement(at=0x42)]),
            "PowerManagement at 0x42 is impossible",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {}, [PowerManagement(at=0xFC)]),
            "PowerManagement at 0xfc is impossible",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {}, [VendorSpecific(bytes(90)) for _ in range(3)]),
            "no room for capability VendorSpecific of 93 bytes below 0x100",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {}, [Msi(), Msi(vectors=2)]),
            "two Msi capabilities",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {}, [AdvancedErrorReporting()]),
            "AdvancedErrorReporting needs a PciExpress one",
        ),
        (
            lambda: ConfigSpace(IDENTITY, {}, [PciExpress(), AdvancedErrorReporting(at=0x200)]),
            "no extended capability at 0x100",
        ),
        (
            lambda: ConfigSpace(
                IDENTITY, {}, [PciExpress(), RawExtendedCapability(1, 1, bytes(0xF00))]
            ),
            "no room for capability RawExtendedCapability",
        ),
    ],
)
def test_an_impossible_configuration_space_is_refused(
    declare: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(DeclarationError, match=complaint):
        declare()


def test_a_raw_pci_express_capability_opens_the_extended_space_too() -> None:
    config = ConfigSpace(IDENTITY, {}, [RawCapability(0x10, bytes(0x3A)), AdvancedErrorReporting()])
    assert config.read(0x100, 2) == 1
