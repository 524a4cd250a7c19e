from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softcard.errors import DeclarationError
from softcard.pcie.capabilities import MsiX
from softcard.pcie.config import BarLayout, ConfigSpace, Identity
from softcard.pcie.register_file import RegisterFile

CONTROL_MASK, CONTROL_ENABLE = 0x4000, 0x8000


class Placed:
    """MSI-X in a configuration space, its table and pending bits in a BAR, as a model has it."""

    def __init__(self, vectors: int) -> None:
        declared = MsiX(vectors=vectors, table=(0, 0x0), pba=(0, 0x8000))
        self.config = ConfigSpace(Identity(0x1DED, 1), {0: BarLayout(0x10000)}, [declared])
        found = self.config.capabilities[0]
        assert isinstance(found, MsiX)
        self.msix = found
        self.bar = RegisterFile(0x10000)
        self.bar.add_region("table", 0, found.table_region.size, found.table_region)
        self.bar.add_region("pba", 0x8000, found.pba_region.size, found.pba_region)
        self.unmasked: list[int] = []
        self.msix.on_unmask = self.unmasked.append

    def control(self, value: int) -> None:
        self.config.write(self.msix.base + 2, 2, value)


@pytest.fixture
def placed() -> Placed:
    made = Placed(vectors=70)
    made.control(CONTROL_ENABLE)
    return made


def test_the_capability_says_how_many_vectors_and_where() -> None:
    declared = MsiX(vectors=2048, table=(2, 0x1000), pba=(4, 0x18))
    config = ConfigSpace(Identity(0x1DED, 1), {}, [declared])
    assert config.read(0x40, 4) == 0x07FF_0011
    assert config.read(0x44, 4) == 0x1002
    assert config.read(0x48, 4) == 0x001C
    config.write(0x44, 8, 0)
    assert config.read(0x44, 8) == 0x001C_0000_1002


def test_every_vector_starts_masked_and_empty(placed: Placed) -> None:
    for vector in range(70):
        assert placed.bar.read(16 * vector, 8) == 0
        assert placed.bar.read(16 * vector + 8, 8) == 1 << 32
        assert placed.msix.masked(vector)
        assert not placed.msix.pending(vector)


def test_a_message_is_what_the_driver_wrote_in_the_table(placed: Placed) -> None:
    placed.bar.write(16 * 69, 8, 0x1_FEE0_0003)
    placed.bar.write(16 * 69 + 8, 4, 0x4041)
    assert placed.msix.message(69) == (0x1_FEE0_0000, 0x4041)


def test_one_write_may_set_the_data_and_unmask(placed: Placed) -> None:
    placed.msix.set_pending(3, True)
    messages: list[tuple[int, int]] = []
    placed.msix.on_unmask = lambda vector: messages.append(placed.msix.message(vector))
    placed.bar.write(16 * 3 + 8, 8, 0x77)
    assert messages == [(0, 0x77)]


def test_only_the_mask_bit_of_vector_control_can_be_written(placed: Placed) -> None:
    placed.bar.write(0x0C, 4, 0xFFFFFFFF)
    assert placed.bar.read(0x0C, 4) == 1
    placed.bar.write(0x0C, 4, 0xFFFFFFFE)
    assert placed.bar.read(0x0C, 4) == 0


def test_a_vector_is_masked_by_itself_or_with_the_function(placed: Placed) -> None:
    placed.bar.write(0x0C, 4, 0)
    assert not placed.msix.masked(0)
    placed.control(CONTROL_ENABLE | CONTROL_MASK)
    assert placed.msix.masked(0)


def test_unmasking_a_pending_vector_is_reported_once(placed: Placed) -> None:
    placed.msix.set_pending(69, True)
    placed.bar.write(16 * 69 + 12, 4, 0)
    placed.bar.write(16 * 69 + 12, 4, 0)
    assert placed.unmasked == [69]


def test_unmasking_a_vector_that_is_not_pending_is_not_reported(placed: Placed) -> None:
    placed.msix.set_pending(4, True)
    placed.bar.write(16 * 5 + 12, 4, 0)
    assert placed.unmasked == []


@pytest.mark.parametrize("control", [CONTROL_ENABLE | CONTROL_MASK, 0])
def test_unmasking_under_a_mask_of_the_function_or_without_msix_is_not_reported(
    placed: Placed, control: int
) -> None:
    placed.control(control)
    placed.msix.set_pending(5, True)
    placed.bar.write(16 * 5 + 12, 4, 0)
    assert placed.unmasked == []
    assert placed.msix.pending(5)


def test_what_waits_only_for_the_function_mask_is_found_when_that_ends(placed: Placed) -> None:
    placed.control(CONTROL_ENABLE | CONTROL_MASK)
    for vector in (2, 64, 65):
        placed.msix.set_pending(vector, True)
    for vector in (1, 64, 2):
        placed.bar.write(16 * vector + 12, 4, 0)
    assert placed.msix.pending_unmasked() == []
    placed.control(CONTROL_ENABLE)
    assert placed.msix.pending_unmasked() == [2, 64]


def test_the_driver_reads_pending_bits_and_cannot_write_them(placed: Placed) -> None:
    for vector in (0, 63, 64, 69):
        placed.msix.set_pending(vector, True)
    placed.bar.write(0x8000, 8, 0)
    placed.bar.write(0x8008, 8, 0xFFFFFFFFFFFFFFFF)
    assert placed.bar.read(0x8000, 8) == 1 << 63 | 1
    assert placed.bar.read(0x8008, 8) == 1 << 5 | 1
    assert placed.bar.read(0x8004, 4) == 1 << 31
    placed.msix.set_pending(63, False)
    assert placed.bar.read(0x8007, 1) == 0


def test_a_reset_masks_and_clears_everything(placed: Placed) -> None:
    placed.bar.write(0, 8, 0xFFFFFFFFFFFFFFFF)
    placed.bar.write(8, 8, 0x1234)
    placed.msix.set_pending(1, True)
    placed.config.restore(power_on=False, function_level=True)
    assert placed.msix.message(0) == (0, 0)
    assert placed.bar.read(0x0C, 4) == 1
    assert placed.bar.read(0x8000, 8) == 0
    assert not placed.msix.control.enable
    assert placed.unmasked == []


@given(
    st.lists(
        st.integers(1, 8).flatmap(
            lambda size: st.tuples(
                st.integers(0, 64 - size), st.just(size), st.integers(0, (1 << 8 * size) - 1)
            )
        )
    )
)
def test_accesses_of_any_shape_change_just_the_bytes_they_touch(
    script: list[tuple[int, int, int]],
) -> None:
    bar = Placed(vectors=4).bar
    writable = (0xFFFFFFFC | 0xFFFFFFFF << 32 | 0xFFFFFFFF << 64 | 1 << 96).to_bytes(16, "little")
    expected = bytearray((1 << 96).to_bytes(16, "little") * 4)
    for offset, size, value in script:
        bar.write(offset, size, value)
        for i in range(size):
            expected[offset + i] = value >> 8 * i & 0xFF & writable[(offset + i) % 16]
    assert bytes(bar.read(at, 1) for at in range(64)) == expected
    assert [bar.read(at, 8) for at in range(57)] == [
        int.from_bytes(expected[at : at + 8], "little") for at in range(57)
    ]


@pytest.mark.parametrize(
    ("declare", "complaint"),
    [
        (lambda: MsiX(vectors=0, table=(0, 0), pba=(0, 64)), "0 MSI-X vectors"),
        (lambda: MsiX(vectors=2049, table=(0, 0), pba=(1, 0)), "2049 MSI-X vectors"),
        (lambda: MsiX(vectors=1, table=(0, 4), pba=(1, 0)), "MSI-X table at offset 0x4 of BAR 0"),
        (lambda: MsiX(vectors=1, table=(0, 0), pba=(6, 0)), "pending bit array .* of BAR 6"),
        (lambda: MsiX(vectors=1, table=(0, 0), pba=(1, -8)), "pending bit array at offset -0x8"),
        (lambda: MsiX(vectors=1, table=(0, 1 << 32), pba=(1, 0)), "below 4 GiB"),
        (lambda: MsiX(vectors=4, table=(1, 0), pba=(1, 56)), "overlap in BAR 1"),
        (lambda: MsiX(vectors=65, table=(1, 8), pba=(1, 0)), "overlap in BAR 1"),
    ],
)
def test_an_impossible_declaration_is_refused(
    declare: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(DeclarationError, match=complaint):
        declare()


def test_table_and_pending_bits_may_touch_and_may_be_in_two_bars() -> None:
    MsiX(vectors=4, table=(1, 0), pba=(1, 64))
    MsiX(vectors=64, table=(1, 8), pba=(1, 0))
    MsiX(vectors=4, table=(1, 0), pba=(2, 0))
