# cython: language_level=3
from libc.stdint cimport uint64_t


cdef struct Window:
    uint64_t address
    uint64_t size
    char *data
    Py_buffer buffer


cdef class Windows:
    cdef object _dma
    cdef Window *_table
    cdef Py_ssize_t _count
    cdef Py_ssize_t _last

    cdef char *_search(self, uint64_t address, uint64_t length) except? NULL
    cdef bint _open(self, uint64_t address) except -1
    cdef void _close(self, Py_ssize_t first, Py_ssize_t end) noexcept

    cdef inline char *at(self, uint64_t address, uint64_t length) except? NULL:
        """Memory by bus address; NULL where it is not, as a whole, in one window. The pointer is
        good until any Python code is called."""
        cdef Window *window = self._table + self._last
        cdef uint64_t start = address - window.address
        if start < window.size and length <= window.size - start:
            return window.data + start
        return self._search(address, length)


cdef struct Piece:
    char *data
    uint64_t size


cdef void gather(char *target, const Piece *pieces, Py_ssize_t count) noexcept nogil
cdef void scatter(
    const Piece *pieces, Py_ssize_t count, const char *source, const char *following
) noexcept nogil
