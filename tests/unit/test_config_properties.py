"""Configuration space under random declarations and random accesses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

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
    VendorSpecificExtended,
)
from softcard.pcie.capability import Capability, ExtendedCapability
from softcard.pcie.config import (
    CONFIG_SIZE,
    MAX_BAR_SIZE_32,
    MAX_BAR_SIZE_64,
    MIN_BAR_SIZE,
    BarLayout,
    ConfigSpace,
    Identity,
)

IDENTITY = Identity(vendor_id=0x1DED, device_id=1, class_code=0xFF0000, interrupt_pin=1)

# What a driver can change, written down from the specification's tables and not from the code:
# by offset, the read-write bits of a dword, and those that are cleared by writing ones.
Bits = dict[int, tuple[int, int]]
HEADER: Bits = {0x04: (0x0546, 0xF900_0000), 0x0C: (0xFF, 0), 0x3C: (0xFF, 0)}
EXPRESS: Bits = {0x08: (0x79FF, 0x000F_0000), 0x28: (0x0350, 0)}
EXPRESS_LINK: Bits = {0x10: (0x00CB, 0), 0x30: (0xFFBF, 0x0020_0000)}
UNCORRECTABLE = 0x005F_F010
CORRECTABLE = 0x0000_F1C1
AER: Bits = {
    0x04: (0, UNCORRECTABLE),
    0x08: (UNCORRECTABLE, 0),
    0x0C: (UNCORRECTABLE, 0),
    0x10: (0, CORRECTABLE),
    0x14: (CORRECTABLE, 0),
}


def bits_of(capability: Capability) -> Bits:
    """What a driver can change in a capability, by offset from its start."""
    match capability:
        case PowerManagement():
            return {0x04: (0x0103, 0x8000) if capability.pme else (0x0003, 0)}
        case Msi():
            data = 0x0C if capability.address64 else 0x08
            return (
                {0x00: (0x0071_0000, 0), 0x04: (0xFFFFFFFC, 0)}
                | ({0x08: (0xFFFFFFFF, 0)} if capability.address64 else {})
                | {data: (0xFFFF, 0)}
                | ({data + 4: ((1 << capability.vectors) - 1, 0)} if capability.masking else {})
            )
        case MsiX():
            return {0x00: (0xC000_0000, 0)}
        case PciExpress():
            return EXPRESS | ({} if capability.integrated else EXPRESS_LINK)
        case AdvancedErrorReporting():
            return AER
        case _:
            return {}


def changeable(config: ConfigSpace) -> tuple[bytes, bytes]:
    """The read-write bits of the configuration space, and those cleared by writing ones."""
    places = dict(HEADER)
    for number, layout in config.bars.items():
        mask = ~(layout.size - 1) & ~0xF
        places[0x10 + 4 * number] = mask & 0xFFFFFFFF, 0
        if layout.bits == 64:
            places[0x14 + 4 * number] = mask >> 32 & 0xFFFFFFFF, 0
    for capability in config.capabilities:
        places |= {capability.base + at: bits for at, bits in bits_of(capability).items()}
    plain, cleared = bytearray(CONFIG_SIZE), bytearray(CONFIG_SIZE)
    for at, (read_write, write_one_to_clear) in places.items():
        plain[at : at + 4] = read_write.to_bytes(4, "little")
        cleared[at : at + 4] = write_one_to_clear.to_bytes(4, "little")
    return bytes(plain), bytes(cleared)


def contents(config: ConfigSpace) -> int:
    """All of it, as a driver reads it, as one number."""
    return int.from_bytes(bytes(config.read(at, 1) for at in range(CONFIG_SIZE)), "little")


def write_everywhere(config: ConfigSpace, dword: int) -> None:
    for at in range(0, CONFIG_SIZE, 4):
        config.write(at, 4, dword)


@st.composite
def bar_layouts(draw: st.DrawFn) -> dict[int, BarLayout]:
    bars = {}
    number = 0
    while number < 6:
        bits = draw(st.sampled_from([0, 32, 64] if number < 5 else [0, 32]))
        if bits:
            largest = MAX_BAR_SIZE_32 if bits == 32 else MAX_BAR_SIZE_64
            size = 1 << draw(st.integers(4, largest.bit_length() - 1))
            bars[number] = BarLayout(size, bits, draw(st.booleans()))
        number += 2 if bits == 64 else 1
    return bars


short_bytes = st.binary(max_size=12)
places = st.none() | st.integers(0x10, 0x3F).map(lambda n: 4 * n)
extended_places = st.none() | st.integers(0x40, 0x60).map(lambda n: 4 * n)
single_capabilities = [
    st.builds(
        PowerManagement,
        at=places,
        d1=st.booleans(),
        pme=st.sampled_from([(), (0,), (0, 3, 4)]),
        no_soft_reset=st.booleans(),
    ),
    st.builds(
        Msi,
        vectors=st.sampled_from([1, 2, 4, 8, 16, 32]),
        address64=st.booleans(),
        masking=st.booleans(),
        at=places,
    ),
    st.builds(
        MsiX,
        vectors=st.integers(1, 2048),
        table=st.just((0, 0)),
        pba=st.just((1, 0)),
        at=places,
    ),
]
express = st.builds(PciExpress, flr=st.booleans(), integrated=st.booleans(), at=places)
other_capabilities = st.builds(VendorSpecific, short_bytes, at=places) | st.builds(
    RawCapability, st.integers(0x20, 0xFF), short_bytes, at=places
)
extended_capabilities = st.builds(
    VendorSpecificExtended, st.just(7), st.just(1), short_bytes, at=extended_places
) | st.builds(RawExtendedCapability, st.just(0x1E), st.just(1), short_bytes, at=extended_places)


@st.composite
def capability_lists(draw: st.DrawFn) -> list[Capability]:
    found: list[Capability] = [draw(c) for c in single_capabilities if draw(st.booleans())]
    found += draw(st.lists(other_capabilities, max_size=3))
    if draw(st.booleans()):
        found.append(draw(express))
        if draw(st.booleans()):
            found.append(AdvancedErrorReporting())
        if draw(st.booleans()):
            found.append(DeviceSerialNumber(draw(st.integers(0, (1 << 64) - 1))))
        found += draw(st.lists(extended_capabilities, max_size=3))
    return draw(st.permutations(found))


@st.composite
def config_spaces(draw: st.DrawFn) -> tuple[ConfigSpace, list[Capability]]:
    declared = draw(capability_lists())
    try:
        return ConfigSpace(IDENTITY, draw(bar_layouts()), declared), declared
    except DeclarationError:
        # Two fixed places may collide, and the list at 0x100 may lack its first member.
        assume(False)
        raise


def chain(config: ConfigSpace) -> list[tuple[int, int]]:
    """Offset and id of the standard list's members, as a driver finds them."""
    found = []
    pointer = config.read(0x34, 1)
    while pointer:
        assert pointer % 4 == 0 and 0x40 <= pointer < 0x100
        found.append((pointer, config.read(pointer, 1)))
        assert len(found) <= 48, "the list is a ring"
        pointer = config.read(pointer + 1, 1)
    return found


def extended_chain(config: ConfigSpace) -> list[tuple[int, int]]:
    """Offset and id of the extended list's members, as a driver finds them."""
    found = []
    offset = 0x100
    while offset:
        assert offset % 4 == 0 and 0x100 <= offset < 0x1000
        header = config.read(offset, 4)
        if header:
            found.append((offset, header & 0xFFFF))
        assert len(found) <= 960, "the list is a ring"
        offset = header >> 20
    return found


def listed(placed: Sequence[Capability]) -> list[tuple[int, int]]:
    return [(c.base, c.id) for c in placed]


@given(config_spaces())
def test_the_lists_visit_every_capability_once(
    made: tuple[ConfigSpace, list[Capability]],
) -> None:
    config, declared = made
    placed = config.capabilities
    assert [type(c) for c in placed] == [type(d) for d in declared]
    assert chain(config) == listed([c for c in placed if not isinstance(c, ExtendedCapability)])
    assert sorted(extended_chain(config)) == sorted(
        listed([c for c in placed if isinstance(c, ExtendedCapability)])
    )


@given(config_spaces())
def test_no_two_capabilities_overlap_and_fixed_ones_are_where_they_ask_to_be(
    made: tuple[ConfigSpace, list[Capability]],
) -> None:
    config, declared = made
    end = 0x40
    for capability in sorted(config.capabilities, key=lambda c: c.base):
        assert capability.base >= end
        end = capability.base + capability.size
        assert end <= (0x1000 if isinstance(capability, ExtendedCapability) else 0x100)
    for capability, declaration in zip(config.capabilities, declared, strict=True):
        assert declaration.at in (None, capability.base)


writes = st.integers(1, 8).flatmap(
    lambda size: st.tuples(
        st.integers(0, 0x180) | st.integers(0, CONFIG_SIZE - size),
        st.just(size),
        st.integers(0, (1 << 8 * size) - 1),
    )
)


@given(config_spaces(), st.lists(writes, max_size=30))
def test_no_write_of_a_driver_changes_a_read_only_bit(
    made: tuple[ConfigSpace, list[Capability]], script: list[tuple[int, int, int]]
) -> None:
    config, _ = made
    plain, cleared = (int.from_bytes(bits, "little") for bits in changeable(config))
    before = contents(config)
    for offset, size, value in script:
        config.write(offset, size, value)
    for dword in (0xFFFFFFFF, 0):
        write_everywhere(config, dword)
        assert hex((contents(config) ^ before) & ~(plain | cleared)) == hex(0)


@given(config_spaces())
def test_every_writable_bit_does_what_a_driver_asks(
    made: tuple[ConfigSpace, list[Capability]],
) -> None:
    config, _ = made
    plain, cleared = (int.from_bytes(bits, "little") for bits in changeable(config))
    everything = contents(config) | plain | cleared
    config.file.storage[:] = everything.to_bytes(CONFIG_SIZE, "little")
    write_everywhere(config, 0)
    assert hex(contents(config)) == hex(everything & ~plain)
    write_everywhere(config, 0xFFFFFFFF)
    assert hex(contents(config)) == hex(everything & ~cleared)


LEGAL_BARS = [
    BarLayout(1 << power, bits)
    for bits, largest in ((32, MAX_BAR_SIZE_32), (64, MAX_BAR_SIZE_64))
    for power in range(MIN_BAR_SIZE.bit_length() - 1, largest.bit_length())
]


@pytest.mark.parametrize("layout", LEGAL_BARS, ids=lambda b: f"{b.bits} bits, {b.size:#x}")
def test_sizing_a_bar_with_all_ones_gives_its_size(layout: BarLayout) -> None:
    config = ConfigSpace(IDENTITY, {2: layout})
    kind = config.read(0x18, 4)
    assert kind == (0b100 if layout.bits == 64 else 0)
    config.write(0x18, 4, 0xFFFFFFFF)
    config.write(0x1C, 4, 0xFFFFFFFF)
    low, high = config.read(0x18, 4), config.read(0x1C, 4)
    assert low & 0xF == kind
    mask = low & ~0xF | (high << 32 if layout.bits == 64 else 0xFFFFFFFF << 32)
    assert (1 << 64) - mask == layout.size
    if layout.bits == 32:
        assert high == 0
    address = (0xAAAA_5555_9999_6666 % (1 << layout.bits)) & -layout.size
    config.write(0x18, 4, address & 0xFFFFFFFF)
    config.write(0x1C, 4, address >> 32)
    assert config.bar_address(2) == address
