"""Survives the loss of memory that is mapped from another process's file.

Where that process cuts the file short, or the machine has no page left for it, an access is a bus
error, which ends the process. Here the whole mapping is replaced by empty private memory instead,
and the access goes on. It costs nothing as long as nothing is lost.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import signal
import weakref
from typing import Protocol

SA_SIGINFO, SA_NODEFER = 0x4, 0x40000000
SI_ADDR = 16
SIGSET_WORDS = 1024 // 8 // ctypes.sizeof(ctypes.c_ulong)
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

# Calls of this library keep the interpreter's lock: no other thread runs while a fault is mended.
_libc = ctypes.PyDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)


class Mapped(Protocol):
    """A mapping that can be lost."""

    address: int
    size: int
    lost: bool


class _SigAction(ctypes.Structure):
    """struct sigaction."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * SIGSET_WORDS),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Faults:
    """The handler of bus errors; those elsewhere go to the handler that was there before."""

    def __init__(self) -> None:
        self._mapped: dict[int, weakref.ref[Mapped]] = {}
        self._before = _SigAction()
        self._handler = HANDLER(self._handle)
        address = ctypes.cast(self._handler, ctypes.c_void_p)
        action = _SigAction(handler=address, flags=SA_SIGINFO | SA_NODEFER)
        if _libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(self._before)):
            raise OSError("the handler of bus errors cannot be set")

    def add(self, mapped: Mapped) -> None:
        """From now on a fault in this mapping is mended, as long as somebody keeps it."""
        self._mapped[mapped.address] = weakref.ref(mapped)

    def remove(self, mapped: Mapped) -> None:
        """It is mapped no more."""
        known = self._mapped.get(mapped.address)
        # Another one may be at its address by now.
        if known is not None and known() is mapped:
            del self._mapped[mapped.address]

    def _handle(self, _signal: int, info: int, _context: int) -> None:
        fault = ctypes.c_size_t.from_address(info + SI_ADDR).value
        for known in list(self._mapped.values()):
            mapped = known()
            if mapped is None:
                continue
            end = mapped.address - (-mapped.size // mmap.PAGESIZE) * mmap.PAGESIZE
            if mapped.address <= fault < end and replace(mapped.address, mapped.size):
                mapped.lost = True
                return
        # The access is made again, for whoever cared before.
        _libc.sigaction(signal.SIGBUS, ctypes.byref(self._before), None)


@functools.cache
def survive_faults() -> Faults:
    """The one of this process, set up when memory is mapped for the first time."""
    return Faults()


def replace(address: int, size: int) -> bool:
    """Put empty private memory in the place of a mapping; whether that worked."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    return bool(_libc.mmap(address, size, access, PRIVATE, -1, 0) == address)
