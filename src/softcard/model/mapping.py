"""Memory of another process, mapped for as long as that process allows."""

from __future__ import annotations

import ctypes
import mmap
import os

from softcard.model.faults import replace, survive_faults


class Mapping:
    """`size` bytes at `offset` of the file `fd`, which is not needed any more afterwards.

    Attributes:
        view: the memory.
        lost: the file did not keep what it promised, as when its owner has cut it short; the
            memory is private since, and was empty.

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
        self.address = address_of(self._mmap)
        self.size = size
        self.lost = False
        survive_faults().add(self)

    def revoke(self) -> None:
        """Take the memory away, from those who still hold views of it as well: what they read and
        write then is private and leads nowhere."""
        self.view.release()
        try:
            self._mmap.close()
        except BufferError:
            # Views are left: the addresses stay theirs.
            if not replace(self.address, self.size):
                raise OSError("memory that was taken away cannot be unmapped") from None
        survive_faults().remove(self)


def address_of(mapped: mmap.mmap) -> int:
    """Where memory is mapped in this process; also of what may not be written."""
    holder, buffer = ctypes.py_object(mapped), _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(holder, ctypes.byref(buffer), 0)
    address = int(buffer.buf)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


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
