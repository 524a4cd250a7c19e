from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from softcard.backend.part import Extent, PartStore
from softcard.backend.ram import RamStore
from softcard.errors import UsageError

PAGE = mmap.PAGESIZE


def read(store: RamStore | PartStore, offset: int, length: int) -> bytes:
    data = bytearray(length)
    store.read_into(offset, [memoryview(data)[: length // 2], memoryview(data)[length // 2 :]])
    return bytes(data)


def resident(store: RamStore) -> int:
    """Bytes of memory that the process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_it_is_zero_at_first_and_holds_what_was_written() -> None:
    store = RamStore(1 << 20)
    assert read(store, 0, 1 << 20) == bytes(1 << 20)
    store.write_from(1000, [b"abc", memoryview(b"defg")])
    assert read(store, 999, 9) == b"\0abcdefg\0"


def test_a_large_one_takes_memory_only_where_it_is_written() -> None:
    before = resident(RamStore(PAGE))
    store = RamStore(1 << 40)
    store.write_from((1 << 40) - 3, [b"end"])
    assert read(store, (1 << 40) - 3, 3) == b"end"
    assert resident(store) - before < 1 << 24


@pytest.mark.parametrize("offset", [0, 1, PAGE - 1, PAGE])
@pytest.mark.parametrize("length", [0, 1, PAGE - 1, PAGE, 2 * PAGE + 7])
def test_discarded_bytes_read_as_zero_and_no_others(offset: int, length: int) -> None:
    store = RamStore(4 * PAGE)
    store.write_from(0, [b"x" * 4 * PAGE])
    store.discard(offset, length)
    expected = bytearray(b"x" * 4 * PAGE)
    expected[offset : offset + length] = bytes(length)
    assert read(store, 0, 4 * PAGE) == expected


def test_discarding_gives_memory_back() -> None:
    store = RamStore(64 << 20)
    store.write_from(0, [b"x" * (64 << 20)])
    full = resident(store)
    store.discard(0, 64 << 20)
    assert full - resident(store) > 60 << 20


def test_data_outlive_a_close() -> None:
    store = RamStore(PAGE)
    store.write_from(0, [b"kept"])
    store.close()
    store.open()
    assert read(store, 0, 4) == b"kept"


@pytest.mark.parametrize("size", [0, -1, 1 << 62, 1 << 70])
def test_an_impossible_size_is_a_usage_error(size: int) -> None:
    with pytest.raises(UsageError, match=r"store of|no memory"):
        RamStore(size)


def test_a_part_of_one_piece_is_a_view_of_the_whole() -> None:
    whole = RamStore(4 * PAGE)
    part = PartStore(whole, [Extent(PAGE, PAGE)])
    part.write_from(0, [b"part"])
    assert part.view is not None
    assert bytes(part.view[:4]) == b"part"
    assert read(part, 0, 4) == b"part"
    assert read(whole, PAGE, 4) == b"part"


def test_a_part_of_several_pieces_is_one_store() -> None:
    whole = RamStore(100)
    whole.write_from(0, [bytes(range(100))])
    part = PartStore(whole, [Extent(50, 10), Extent(10, 5), Extent(80, 10)])
    inside = bytes([*range(50, 60), *range(10, 15), *range(80, 90)])
    assert part.size == 25
    assert part.view is None
    assert read(part, 0, 25) == inside
    for offset in range(25):
        for length in range(25 - offset + 1):
            assert read(part, offset, length) == inside[offset : offset + length]


def test_writes_and_discards_of_a_part_stay_inside_it() -> None:
    whole = RamStore(40)
    whole.write_from(0, [b"." * 40])
    part = PartStore(whole, [Extent(20, 4), Extent(4, 4)])
    part.write_from(2, [b"ab", b"c"])
    assert read(whole, 0, 40) == b"....c..." + b"." * 14 + b"ab" + b"." * 16
    part.discard(3, 2)
    part.write_zeroes(7, 1)
    assert read(whole, 0, 40) == b"....\0..\0" + b"." * 14 + b"a\0" + b"." * 16
