"""What a member of the group that may make cards can do, and what it cannot.

Run by root, becomes an ordinary user before it opens anything. Argument: the driver of edu, which
is loaded by a helper that stays root.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.host.inside.raw import create, refused

from softcard.bus.host import HostBus, uapi
from softcard.bus.host.device import open_device
from softcard.cards.edu import Edu

USER, GROUP = 1000, 4242
PAGE = mmap.PAGESIZE
LIMIT_PAGES = 64
CARDS, RANGES = 64, 64
BAR = 1 << 20
KERNEL = 0xFFFF_8880_0000_0000
# struct softcard_segment, and a flag of it.
SEGMENT = struct.Struct("<2Q2I")
DMA_WRITE = 1
INFO = uapi.FUNCTION_INFO.pack(0, 0, BAR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def described(device: int) -> int:
    card = create(device)
    fcntl.ioctl(card, uapi.SET_FUNCTION, INFO)
    return card


def area(offset: int, size: int, memory: int) -> bytes:
    return uapi.RANGE.pack(0, 0, uapi.RANGE_MEMORY, 0, offset, size, memory)


def dma(bus_address: int, memory: int, length: int, flags: int = 0) -> bytearray:
    segment = ctypes.create_string_buffer(SEGMENT.pack(bus_address, memory, length, flags))
    kept.append(segment)
    return bytearray(uapi.DMA.pack(0, 0, 1, 0, ctypes.addressof(segment)))


def in_a_child(do: Callable[[], object]) -> int:
    """The status, as of waitpid()."""
    child = os.fork()
    if not child:
        status = 1
        try:
            do()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def check_memory_is_pinned_within_the_limit(device: int) -> None:
    size = (LIMIT_PAGES + 1) * PAGE
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LIMIT_PAGES * PAGE, LIMIT_PAGES * PAGE))
    with mmap.mmap(-1, size) as memory:
        at = address(memory)
        for _ in range(2):
            card = described(device)
            refused(errno.ENOMEM, card, uapi.ADD_RANGE, area(0, size, at))
            fcntl.ioctl(card, uapi.ADD_RANGE, area(0, size - 2 * PAGE, at))
            refused(errno.ENOMEM, card, uapi.ADD_RANGE, area(size, 2 * PAGE, at))
            fcntl.ioctl(card, uapi.ADD_RANGE, area(size, PAGE, at))
            # Another card does not help.
            other = described(device)
            refused(errno.ENOMEM, other, uapi.ADD_RANGE, area(0, PAGE, at))
            os.close(other)
            os.close(card)
            wait_until_freed(device)


def wait_until_freed(device: int) -> None:
    """Cards that are closed are freed in the background: make as many as there may be."""
    while True:
        cards: list[int] = []
        try:
            while len(cards) < CARDS:
                cards.append(create(device))
            return
        except OSError:
            continue
        finally:
            for card in cards:
                os.close(card)


def check_ranges_are_the_programs_own_memory(device: int) -> None:
    card = described(device)
    for memory in (0, KERNEL, 0xFFFF_FFFF_8100_0000, 1 << 63):
        refused(errno.EFAULT, card, uapi.ADD_RANGE, area(0, PAGE, memory))
    # What it may only read is no memory for a driver to write to.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with Path("/etc/passwd").open("rb") as file:
        read_only = libc.mmap(None, PAGE, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    refused(errno.EFAULT, card, uapi.ADD_RANGE, area(0, PAGE, read_only))
    with mmap.mmap(-1, PAGE) as own:
        for number in range(RANGES):
            fcntl.ioctl(card, uapi.ADD_RANGE, area(number * PAGE, PAGE, address(own)))
        refused(errno.ENOSPC, card, uapi.ADD_RANGE, area(RANGES * PAGE, PAGE, address(own)))
    os.close(card)
    wait_until_freed(device)


def check_the_ring_is_data_and_one_programs(device: int) -> None:
    card = described(device)
    for kind, protection, why in (
        (mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_EXEC, errno.EPERM),
        (mmap.MAP_PRIVATE, mmap.PROT_READ, errno.EINVAL),
    ):
        try:
            mmap.mmap(card, PAGE, kind, protection)
        except OSError as error:
            assert error.errno == why, error
        else:
            raise AssertionError("the ring is mapped")
    ring = mmap.mmap(card, uapi.RING_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    executable = mmap.PROT_READ | mmap.PROT_EXEC
    assert libc.mprotect(ctypes.c_void_p(address(ring)), ctypes.c_size_t(PAGE), executable) == -1
    assert ctypes.get_errno() == errno.EACCES
    # After fork() it is not there, and memory of the child's is not for the card.
    assert in_a_child(lambda: ring[0]) == signal.SIGSEGV
    with mmap.mmap(-1, PAGE) as memory:
        at = address(memory)
        assert not in_a_child(lambda: refused(errno.EPERM, card, uapi.ADD_RANGE, area(0, PAGE, at)))
    os.close(card)


def check_there_are_only_so_many_cards(device: int) -> None:
    cards = [create(device) for _ in range(CARDS)]
    refused(errno.ENOSPC, device, uapi.CREATE_CARD, uapi.CREATE.pack(1, 0, 0, 0))
    for card in cards:
        os.close(card)
    wait_until_freed(device)


def check_dma_reaches_what_the_driver_has_mapped(helper: "subprocess.Popen[str]") -> None:
    with HostBus() as bus, mmap.mmap(-1, 2 * PAGE) as memory:
        slot = bus.plug(Edu())
        assert helper.stdin is not None
        assert helper.stdout is not None
        helper.stdin.write("load\n")
        helper.stdin.flush()
        assert helper.stdout.readline() == "loaded\n"
        fd, at = slot._server._device.fd, address(memory)
        pages = []
        for page in range(1024):
            try:
                fcntl.ioctl(fd, uapi.TRANSFER, dma(page * PAGE, at, PAGE))
                pages.append(page * PAGE)
            except OSError as error:
                assert error.errno == errno.EPERM, error
        # The driver has one page; what comes before and behind it is not its.
        (mapped,) = pages
        for start, length in (
            (mapped - 1, 2), (mapped + PAGE - 1, 2), (mapped - PAGE, PAGE), (mapped + PAGE, 1),
            (0, 1), (0xFEE00000, 4), (KERNEL, 8), (1 << 32, 8), ((1 << 64) - 8, 16),
        ):  # fmt: skip
            for flags in (0, DMA_WRITE):
                refused(errno.EPERM, fd, uapi.TRANSFER, dma(start, at, length, flags))
        # The other end is the program's own memory.
        for theirs in (KERNEL, 0xFFFF_FFFF_8100_0000, 0):
            for flags in (0, DMA_WRITE):
                refused(errno.EFAULT, fd, uapi.TRANSFER, dma(mapped, theirs, 8, flags))
        slot.pull()
        helper.stdin.write("unload\n")
        helper.stdin.flush()
        assert helper.stdout.readline() == "unloaded\n"


HELPER = """
import subprocess, sys
for line in sys.stdin:
    what = ["insmod", sys.argv[1]] if line == "load\\n" else ["rmmod", "softcard_edu"]
    subprocess.run(what, check=True)
    print(line.strip() + "ed", flush=True)
"""

kept: list[object] = []
helper = subprocess.Popen(
    [sys.executable, "-c", HELPER, sys.argv[1]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)  # fmt: skip
os.setgroups([GROUP])
os.setgid(USER)
os.setuid(USER)
device = open_device()
check_memory_is_pinned_within_the_limit(device)
check_ranges_are_the_programs_own_memory(device)
check_the_ring_is_data_and_one_programs(device)
check_there_are_only_so_many_cards(device)
check_dma_reaches_what_the_driver_has_mapped(helper)
assert helper.stdin is not None
helper.stdin.close()
helper.wait()
print("confined")
