"""Memory of another process, mapped for as long as that process allows."""

from __future__ import annotations

import ctypes
import mmap
import os


class Mapping:
    """`size` bytes at `offset` of the file `fd`, which is not needed any more afterwards.

    Attributes:
        view: the memory.

    Raises:
        ValueError: the file does not hold what was promised, or `offset` is inside a page.
        OSError: the file cannot be mapped.
    """

    def __init__(self, fd: int, offset: int, size: int, *, writable: bool = True) -> None:
        if size <= 0 or offset < 0 or offset % mmap.PAGESIZE:
            raise ValueError(f"{size} bytes at offset {offset:#x} of a file cannot be mapped")
        if offset + size > os.fstat(fd).st_size:
            raise ValueError(f"{size} bytes at offset {offset:#x} are not in their file")
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._mmap = mmap.mmap(fd, size, prot=access, offset=offset)
        self.view = memoryview(self._mmap)

    def revoke(self) -> None:
        """Take the memory away, from those who still hold views of it as well: what they read and
        write then is private and leads nowhere."""
        self.view.release()
        try:
            self._mmap.close()
        except BufferError:
            _replace(self._mmap)


def _replace(mapped: mmap.mmap) -> None:
    """Put empty private memory in the place of a mapping that is in use."""
    holder = ctypes.py_object(mapped)
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(holder, ctypes.byref(buffer), 0)
    address, size = buffer.buf, buffer.len
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
    if libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != address:
        raise OSError(ctypes.get_errno(), "memory that was taken away cannot be unmapped")


MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000


class _Buffer(ctypes.Structure):
    """Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )
