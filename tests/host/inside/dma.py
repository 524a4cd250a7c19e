"""DMA of a card, with a driver that maps and unmaps as it is told. Argument: the driver."""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress
from pathlib import Path

from tests.host.inside.common import DEBUGFS, load, mount_debugfs, sh, wait_for, wait_until

from softcard import Bar, Card, DmaError
from softcard.bus.host import HostBus, uapi
from softcard.model.link import SEGMENT, TO_BUS

PAGE = 4096
BOTH, TO_DEVICE, FROM_DEVICE = 0, 1, 2
FOLDER = DEBUGFS / "softcard_dma"
SECRET = bytes(range(256)) * 16


class Copier(Card):
    vendor_id, device_id = 0x1DED, 0x0D0A

    class bar0(Bar, size=4096):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.removed: list[tuple[int, int]] = []

    def on_memory_removed(self, address: int, size: int) -> None:
        self.removed.append((address, size))


def command(what: str, direction: int = 0, number: int = 0) -> list[tuple[int, int]]:
    """Have the driver map or unmap; where its memory is then."""
    (FOLDER / "command").write_text(f"{what} {direction} {number}")
    lines = [line.split() for line in (FOLDER / "where").read_text().splitlines()]
    return [(int(address, 16), int(length)) for address, length in lines]


def content() -> bytes:
    return (FOLDER / "data").read_bytes()


def fill(data: bytes) -> None:
    (FOLDER / "data").write_bytes(data)


def refused(why: str, address: int, length: int, *, write: bool) -> None:
    """The card's author sees an error with the address, by each way to access memory."""
    own = mmap.mmap(-1, -(-length // PAGE) * PAGE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(own))
    segment = SEGMENT.pack(address, at, length, TO_BUS if write else 0)
    table = ctypes.create_string_buffer(segment, SEGMENT.size)
    for call in (
        lambda: card.dma.write(address, bytes(length)) if write else card.dma.read(address, length),
        lambda: card.dma.move(ctypes.addressof(table), 1),
        lambda: card.dma.map(address, length),
    ):
        try:
            call()
        except DmaError as error:
            assert (error.address, error.length, error.done) == (address, length, 0), error
        else:
            raise AssertionError(why)
    assert not any(own[:]), "something of it was read all the same"
    print("refused:", why, hex(address))


def what_is_not_allowed() -> None:
    ((address, size),) = command("single", TO_DEVICE, 1000)
    fill(SECRET[:1000])
    assert card.dma.read(address, size) == SECRET[:1000]
    refused("wrong direction", address, size, write=True)
    refused("past the end", address, size + 1, write=False)
    refused("before the beginning", address - 1, 2, write=False)
    refused("next page", address + PAGE, 8, write=False)
    refused("never mapped", 0x7654_3000, 64, write=True)
    refused("out of the world", (1 << 64) - 8, 16, write=False)
    command("unmap")
    refused("unmapped", address, size, write=False)
    ((address, size),) = command("single", FROM_DEVICE, 1000)
    refused("wrong direction", address, size, write=False)
    card.dma.write(address, SECRET[:1000])
    assert content() == SECRET[:1000]
    # Slab memory, which begins where it likes: each start and length.
    for start in range(9):
        for length in range(1, 20):
            fill(bytes(1000))
            card.dma.write(address + start, SECRET[1 : 1 + length])
            assert content() == bytes(start) + SECRET[1 : 1 + length] + bytes(1000 - start - length)


def a_list_is_moved_by_one_call() -> None:
    pages = 4000
    pieces = command("list", BOTH, pages)
    assert sum(length for _, length in pieces) == pages * PAGE
    data = b"".join(number.to_bytes(4, "little") * (PAGE // 4) for number in range(pages))
    own = mmap.mmap(-1, pages * PAGE)
    own[:] = data
    base = ctypes.addressof(ctypes.c_char.from_buffer(own))

    def move(flags: int) -> None:
        # The last page first, so that nothing can be joined.
        table, at = bytearray(), base
        for address, length in pieces:
            for offset in range(0, length, PAGE):
                table[:0] = SEGMENT.pack(address + offset, at, PAGE, flags)
                at += PAGE
        count = len(table) // SEGMENT.size
        assert count == pages
        buffer = ctypes.create_string_buffer(bytes(table), len(table))
        card.dma.move(ctypes.addressof(buffer), count)

    move(TO_BUS)
    assert content() == data
    fill(data[::-1])
    # The program's pages are not there yet, then.
    own.madvise(mmap.MADV_DONTNEED)
    move(0)
    assert own[:] == data[::-1]
    print("segments:", pages)


def how_far_a_move_came_is_told() -> None:
    ((address, size),) = command("single", BOTH, 2 * PAGE)
    own = ctypes.create_string_buffer(b"x" * PAGE, PAGE)
    at = ctypes.addressof(own)
    fields = [(address, at, 16, TO_BUS), (address + 16, at, 16, TO_BUS), (address, 8, 16, TO_BUS)]
    table = ctypes.create_string_buffer(b"".join(SEGMENT.pack(*each) for each in fields))
    try:
        card.dma.move(ctypes.addressof(table), 3)
    except DmaError as error:
        assert error.done == 2, error
        assert "Bad address" in str(error)
    else:
        raise AssertionError("an address that this program does not have")
    assert content() == b"x" * 32 + bytes(size - 32)


def coherent_memory_is_shared() -> None:
    ((address, size),) = command("coherent", 0, 3 * PAGE)
    seen: list[memoryview] = []

    def mapped() -> bool:
        with suppress(DmaError):
            seen.append(card.dma.map(address + 8, size - 8))
        return bool(seen)

    wait_until(mapped)
    (view,) = seen
    view[:5] = b"hello"
    assert content()[8:13] == b"hello"
    fill(b"from the driver")
    assert bytes(view[:7]) == b"from the driver"[8:]
    assert card.dma.read(address, 15) == b"from the driver"
    refused("past the end of coherent memory", address, size + 1, write=False)
    command("single", BOTH, 8)  # frees it
    wait_until(lambda: (address, size) in card.removed)
    refused("coherent memory that was freed", address, 8, write=False)
    # What is left to the card is private memory: nobody else's, and harmless.
    wait_until(lambda: not any(view))
    view[:] = b"\xff" * len(view)

    print("shared:", size)


def a_card_that_was_pulled_reaches_nothing() -> None:
    ((address, size),) = command("coherent", 0, PAGE)
    wait_until(lambda: card.dma.view(address, size) is not None)
    view = card.dma.map(address, size)
    view[:4] = b"mine"
    # A mapping of which the bus knows nothing: a program need not let go by itself.
    descriptors = (path for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    fd = next(int(path.name) for path in descriptors if "softcard" in str(path.readlink()))
    kept = mmap.mmap(fd, size, offset=uapi.MAP_FUNCTION + address)
    assert kept[:4] == b"mine"
    slot.pull()
    assert kept[:4] == bytes(4), "the driver's memory"
    kept[:4] = view[:4] = b"late"
    for call in (card.dma.read, card.dma.map):
        with suppress(DmaError):
            call(address, size)
            raise AssertionError("the card has been pulled")
    print("pulled")


driver = sys.argv[1]
mount_debugfs()
with HostBus() as bus:
    card = Copier()
    slot = bus.plug(card)
    load(driver)
    wait_for(str(FOLDER))
    what_is_not_allowed()
    a_list_is_moved_by_one_call()
    how_far_a_move_came_is_told()
    coherent_memory_is_shared()
    a_card_that_was_pulled_reaches_nothing()
    assert not card.endpoint.errors
    sh("rmmod softcard_dma")
