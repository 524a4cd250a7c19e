"""A card's descriptor: its ring and its ioctls."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence

from softcard.bus.host import uapi
from softcard.errors import DmaError, PlugError
from softcard.model.link import MAX_SEGMENTS, SEGMENT, TO_BUS, SharedRange
from softcard.model.mapping import address_of

ARENA_SIZE = 4 << 20
ARENA_DATA = SEGMENT.size * MAX_SEGMENTS
# Where a read cannot sleep. The kernel's watchdogs take ten times as long for a lockup.
ATOMIC_TIMEOUT = 1.0


def open_device() -> int:
    """A descriptor of /dev/softcard.

    Raises:
        PlugError: the module is not loaded, this user may not use it, or it is of another version.
    """
    try:
        fd = os.open(uapi.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise PlugError(
            f"{uapi.DEVICE} does not exist: load softcard's kernel module, see softcard host status"
        ) from None
    except OSError as error:
        raise PlugError(
            f"{uapi.DEVICE} cannot be opened: {error.strerror}; use it as root, or have root "
            "give you the right to"
        ) from None
    found = fcntl.ioctl(fd, uapi.GET_API)
    if found != uapi.API:
        os.close(fd)
        raise PlugError(
            f"the kernel module that is loaded has version {found} of its interface, and this "
            f"softcard needs {uapi.API}: run softcard host install, and load it again"
        )
    return fd


class Device:
    """A card in the kernel, as yet not plugged in.

    Args:
        functions: how many.
        read_timeout: seconds that a read may take; 0 for ever.

    Attributes:
        fd: the card's descriptor.
        ring: all of what is mapped of it.

    Raises:
        PlugError: see `open_device`.
    """

    def __init__(self, functions: int, read_timeout: float) -> None:
        fd = open_device()
        try:
            atomic = min(read_timeout or ATOMIC_TIMEOUT, ATOMIC_TIMEOUT)
            argument = bytearray(
                uapi.CREATE.pack(functions, 0, round(read_timeout * 1e3), round(atomic * 1e6))
            )
            self.fd: int = fcntl.ioctl(fd, uapi.CREATE_CARD, argument)
        except OSError as error:
            raise PlugError(f"the kernel makes no card: {error.strerror}") from None
        finally:
            os.close(fd)
        self._ring = mmap.mmap(self.fd, uapi.RING_SIZE)
        self.ring = memoryview(self._ring)

    def close(self) -> None:
        """Pull the card, and free all resources."""
        self.ring.release()
        try:
            self._ring.close()
        except BufferError:
            pass  # whoever still looks at it keeps it
        os.close(self.fd)

    def call(self, command: int, argument: bytes | int = 0) -> None:
        """An ioctl; raises `OSError`."""
        fcntl.ioctl(self.fd, command, argument)

    def set_function(self, info: bytes) -> None:
        """Describe a function; `info` is a struct softcard_function_info."""
        fcntl.ioctl(self.fd, uapi.SET_FUNCTION, info)

    def share(self, function: int, area: SharedRange) -> None:
        """Let the kernel access plain memory of a BAR by itself; raises `OSError`."""
        # Pinned by the kernel: the mapping itself is needed no longer than the call.
        with mmap.mmap(area.fd, area.size, offset=area.fd_offset) as memory:
            kind = uapi.RANGE_SHADOW if area.shadow else uapi.RANGE_MEMORY
            place = (area.bar, kind, 0, area.offset, area.size, address_of(memory))
            fcntl.ioctl(self.fd, uapi.ADD_RANGE, uapi.RANGE.pack(function, *place))

    def move(self, function: int, segments: int, count: int) -> None:
        """Have the kernel move segments; see `Upstream.dma_move`.

        Raises:
            DmaError: the driver has not mapped that, or the card is pulled.
        """
        request = bytearray(uapi.DMA.pack(function, 0, count, 0, segments))
        try:
            fcntl.ioctl(self.fd, uapi.TRANSFER, request)
        except OSError as error:
            done = uapi.DMA.unpack(request)[3]
            failed = ctypes.string_at(segments + done * SEGMENT.size, SEGMENT.size)
            address, _, length, flags = SEGMENT.unpack(failed)
            why = _why(error, write=flags == TO_BUS)
            raise DmaError(address, length, why, done=done) from None

    def plug(self, link: tuple[int, int]) -> int:
        """Plug the card in, with a link of this speed and width; returns its PCI domain."""
        answer = fcntl.ioctl(self.fd, uapi.PLUG_CARD, uapi.PLUG.pack(0, 0, *link))
        domain: int = uapi.PLUG.unpack(answer)[1]
        return domain


class Arena:
    """Memory of this process that DMA goes through, and the list of segments in front of it.

    For one thread at a time.

    Args:
        device: the card.
        function: its function's number.
    """

    def __init__(self, device: Device, function: int) -> None:
        self._device = device
        self._function = function
        self._memory = mmap.mmap(-1, ARENA_DATA + ARENA_SIZE)
        self._address = address_of(self._memory)
        self.data = memoryview(self._memory)[ARENA_DATA:]

    def transfer(self, segments: Sequence[tuple[int, int]], *, write: bool) -> None:
        """Move all segments, of bus address and length, between memory and `data`, where they lie
        one behind the other.

        Raises:
            DmaError: the driver has not mapped that, or the card is pulled.
        """
        at = self._address + ARENA_DATA
        flags = TO_BUS if write else 0
        memory, size, pack = self._memory, SEGMENT.size, SEGMENT.pack_into
        for index, (address, length) in enumerate(segments):
            pack(memory, index * size, address, at, length, flags)
            at += length
        self._device.move(self._function, self._address, len(segments))


def _why(error: OSError, *, write: bool) -> str:
    if error.errno == errno.EPERM:
        return f"the driver has not mapped this memory for {'writing' if write else 'reading'}"
    if error.errno == errno.ENXIO:
        return "the card has been pulled"
    return str(error.strerror)
