"""Random register maps and random accesses, against a model that knows only single bits."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from softcard.pcie.register import RC, RW, W1C, W1S, WIDTHS, WO, Access, Field, Register
from softcard.pcie.register_file import RegisterBlock, RegisterFile

FILE_SIZE = 48


@dataclass
class Declared:
    """A register of the map: its place, and the access kind of each bit (None: reserved)."""

    at: int
    width: int
    kinds: list[Access | None]
    initial: int
    hooked: bool
    written: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.at + self.width // 8


@st.composite
def kinds_of_bits(draw: st.DrawFn, width: int) -> list[Access | None]:
    kinds: list[Access | None] = []
    while len(kinds) < width:
        run = draw(st.integers(1, width - len(kinds)))
        kinds += [draw(st.sampled_from([*Access, None]))] * run
    return kinds


@st.composite
def register_maps(draw: st.DrawFn) -> list[Declared]:
    declared: list[Declared] = []
    at = draw(st.integers(0, 3))
    while at < FILE_SIZE:
        width = draw(st.sampled_from([w for w in WIDTHS if at + w // 8 <= FILE_SIZE]))
        initial = draw(st.integers(0, (1 << width) - 1))
        declared.append(
            Declared(at, width, draw(kinds_of_bits(width)), initial, draw(st.booleans()))
        )
        at += width // 8 + draw(st.sampled_from([0, 0, 0, 1, 2, 5]))
    return declared


def register_of(declared: Declared) -> Register:
    """The register as a card would declare it: a field for each run of bits of one kind."""
    fields = {}
    start = 0
    for bit in range(1, declared.width + 1):
        if bit == declared.width or declared.kinds[bit] is not declared.kinds[start]:
            if (kind := declared.kinds[start]) is not None:
                fields[f"bit{start}"] = Field(bit - 1, start, access=kind)
            start = bit
    # Without any field all bits would take the register's own access.
    fields = fields or {"nothing": Field(0, access=Access.RO)}
    made: type[Register] = type("Made", (Register,), fields)
    return made(declared.at, width=declared.width, reset=declared.initial)


def file_of(declared: list[Declared]) -> RegisterFile:
    attributes = {f"register{d.at}": register_of(d) for d in declared}
    block: type[RegisterBlock] = type("Block", (RegisterBlock,), attributes)
    file = RegisterFile(FILE_SIZE)
    made = block(file)
    for d in declared:
        if d.hooked:
            file.hook_write(getattr(made, f"register{d.at}"), d.written.append)
    return file


class BitModel:
    """What a file of registers does, bit by bit."""

    def __init__(self, declared: list[Declared]) -> None:
        self.declared = declared
        self.kinds: dict[int, Access | None] = {}
        self.bits: dict[int, int] = {}
        self.hook_calls: dict[int, list[int]] = {d.at: [] for d in declared}
        for d in declared:
            for bit in range(d.width):
                self.kinds[8 * d.at + bit] = d.kinds[bit]
                self.bits[8 * d.at + bit] = d.initial >> bit & 1

    def read(self, offset: int, size: int) -> int:
        result = 0
        for bit in range(8 * size):
            at = 8 * offset + bit
            if self.kinds.get(at) is not WO:
                result |= self.bits.get(at, 0) << bit
            if self.kinds.get(at) is RC:
                self.bits[at] = 0
        return result

    def write(self, offset: int, size: int, value: int) -> None:
        for bit in range(8 * size):
            at = 8 * offset + bit
            new = value >> bit & 1
            kind = self.kinds.get(at)
            if kind in (RW, WO):
                self.bits[at] = new
            elif kind is W1C and new:
                self.bits[at] = 0
            elif kind is W1S and new:
                self.bits[at] = 1
        for d in self.declared:
            if d.hooked and offset < d.end and d.at < offset + size:
                self.hook_calls[d.at].append(self.hook_value(d, offset, size, value))

    def hook_value(self, d: Declared, offset: int, size: int, value: int) -> int:
        result = 0
        for bit in range(d.width):
            at = 8 * d.at + bit
            if 8 * offset <= at < 8 * (offset + size):
                result |= (value >> (at - 8 * offset) & 1) << bit
            elif self.kinds[at] is RW:
                result |= self.bits[at] << bit
        return result

    def held(self) -> dict[int, int]:
        return {
            d.at: sum(self.bits[8 * d.at + bit] << bit for bit in range(d.width))
            for d in self.declared
        }


@st.composite
def accesses(draw: st.DrawFn) -> tuple[bool, int, int, int]:
    size = draw(st.integers(1, 8))
    offset = draw(st.integers(0, FILE_SIZE - 1))
    return draw(st.booleans()), offset, size, draw(st.integers(0, (1 << 8 * size) - 1))


@given(register_maps(), st.lists(accesses(), max_size=20))
def test_every_access_does_to_each_bit_what_its_kind_says(
    declared: list[Declared], script: list[tuple[bool, int, int, int]]
) -> None:
    file, model = file_of(declared), BitModel(declared)
    for is_write, offset, size, value in script:
        if is_write:
            file.write(offset, size, value)
            model.write(offset, size, value)
        else:
            assert file.read(offset, size) == model.read(offset, size)
        assert {r.at: r.value for r in file.registers} == model.held()
    assert {d.at: d.written for d in declared} == model.hook_calls


@given(register_maps(), st.lists(accesses(), max_size=20))
def test_a_reset_undoes_every_write(
    declared: list[Declared], script: list[tuple[bool, int, int, int]]
) -> None:
    file = file_of(declared)
    for _, offset, size, value in script:
        file.write(offset, size, value)
    file.restore(power_on=False)
    assert [r.value for r in file.registers] == [d.initial for d in declared]


@given(register_maps(), accesses())
def test_a_wide_access_equals_its_bytes_one_by_one(
    declared: list[Declared], access: tuple[bool, int, int, int]
) -> None:
    _, offset, size, value = access
    wide, narrow = file_of(declared), file_of(declared)
    wide.write(offset, size, value)
    for i in range(size):
        narrow.write(offset + i, 1, value >> 8 * i & 0xFF)
    assert wide.storage == narrow.storage
    parts = [narrow.read(offset + i, 1) << 8 * i for i in range(size)]
    assert wide.read(offset, size) == sum(parts)
    assert wide.storage == narrow.storage
