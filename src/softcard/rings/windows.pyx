# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The driver's memory as pointers, by bus address."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from softcard.errors import DmaError
from softcard.rings.ring cimport ring_copy

cdef enum:
    CAPACITY = 1024


cdef class Windows:
    """Every range of shared memory that was used so far.

    This is the only place where pointers to the driver's memory are kept, and every one holds the
    buffer that it points into. They are given up before the bus takes the memory away.

    Args:
        dma: where the memory is found.
    """

    def __cinit__(self, dma):
        self._dma = dma
        self._table = <Window *>calloc(CAPACITY + 1, sizeof(Window))
        if self._table == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._table != NULL:
            self._close(0, self._count)
            free(self._table)

    def __len__(self):
        return self._count

    def forget(self, uint64_t address, uint64_t size):
        """The bus takes this memory away."""
        cdef Py_ssize_t first = 0, end
        while first < self._count and (
            self._table[first].address < address
            and self._table[first].size <= address - self._table[first].address
        ):
            first += 1
        end = first
        while end < self._count and (
            self._table[end].address < address or self._table[end].address - address < size
        ):
            end += 1
        self._close(first, end)

    def forget_all(self):
        """Use none of the memory."""
        self._close(0, self._count)

    cdef char *_search(self, uint64_t address, uint64_t length) except? NULL:
        cdef Py_ssize_t low, high, middle
        cdef Window *window
        cdef uint64_t start
        while True:
            low, high = 0, self._count
            while low < high:
                middle = (low + high) >> 1
                if self._table[middle].address <= address:
                    low = middle + 1
                else:
                    high = middle
            if low:
                window = self._table + low - 1
                start = address - window.address
                if start < window.size:
                    self._last = low - 1
                    return window.data + start if length <= window.size - start else NULL
            if not self._open(address):
                return NULL

    cdef bint _open(self, uint64_t address) except -1:
        """Enter the window around an address; whether there is one."""
        cdef Window window
        cdef Py_ssize_t at
        try:
            found = self._dma.window(address)
            if found is None:
                return False
            PyObject_GetBuffer(found[1], &window.buffer, PyBUF_WRITABLE)
        except (DmaError, BufferError):
            return False
        if self._count == CAPACITY:
            self._close(0, self._count)
        window.address = found[0]
        window.size = window.buffer.len
        window.data = <char *>window.buffer.buf
        at = self._count
        while at and self._table[at - 1].address > window.address:
            at -= 1
        memmove(self._table + at + 1, self._table + at, (self._count - at) * sizeof(Window))
        self._table[at] = window
        self._count += 1
        return True

    cdef void _close(self, Py_ssize_t first, Py_ssize_t end) noexcept:
        cdef Py_ssize_t at
        for at in range(first, end):
            PyBuffer_Release(&self._table[at].buffer)
        memmove(self._table + first, self._table + end, (self._count - end) * sizeof(Window))
        self._count -= end - first
        # `at` looks at one, even where there is none.
        self._table[self._count].size = 0
        self._last = 0


cdef void gather(char *target, const Piece *pieces, Py_ssize_t count) noexcept nogil:
    """Copy pieces of memory to one place."""
    cdef Py_ssize_t at
    for at in range(count):
        memcpy(target, pieces[at].data, pieces[at].size)
        target += pieces[at].size


cdef void scatter(
    const Piece *pieces, Py_ssize_t count, const char *source, const char *following
) noexcept nogil:
    """Copy memory to many pieces; `following` is what will be copied next, or NULL."""
    cdef Py_ssize_t at
    for at in range(count):
        ring_copy(pieces[at].data, source, pieces[at].size, following)
        source += pieces[at].size
        if following != NULL:
            following += pieces[at].size
