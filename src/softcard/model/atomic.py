"""AtomicOps on memory that a driver's processor uses at the same time."""

from __future__ import annotations

import ctypes
import threading
from functools import cache

from softcard.model.link import AtomicOp

_FALLBACK = threading.Lock()


def apply_atomic(view: memoryview, operation: AtomicOp, operand: int, compare: int) -> int:
    """Do an AtomicOp on 4 or 8 bytes of shared memory; returns the former value.

    It is atomic towards every processor where GCC's libatomic is installed, as it is beside every
    compiler; elsewhere only towards other cards of this process.
    """
    bits = 8 * len(view)
    operand &= (1 << bits) - 1
    library = _libatomic()
    if library is None:
        return _apply_locked(view, operation, operand, compare)
    integer = ctypes.c_uint32 if bits == 32 else ctypes.c_uint64
    target = ctypes.byref(integer.from_buffer(view))
    if operation is AtomicOp.COMPARE_AND_SWAP:
        expected = integer(compare)
        swap = library[f"__atomic_compare_exchange_{len(view)}"]
        swap.argtypes = [ctypes.c_void_p, ctypes.c_void_p, integer, ctypes.c_int, ctypes.c_int]
        swap.restype = ctypes.c_bool
        swap(target, ctypes.byref(expected), integer(operand), _SEQ_CST, _SEQ_CST)
        # It holds the former value where that differed, and is that value where it did not.
        return int(expected.value)
    name = "fetch_add" if operation is AtomicOp.FETCH_ADD else "exchange"
    call = library[f"__atomic_{name}_{len(view)}"]
    call.argtypes = [ctypes.c_void_p, integer, ctypes.c_int]
    call.restype = integer
    return int(call(target, integer(operand), _SEQ_CST))


_SEQ_CST = 5


@cache
def _libatomic() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libatomic.so.1")
    except OSError:
        return None


def _apply_locked(view: memoryview, operation: AtomicOp, operand: int, compare: int) -> int:
    word = view.cast("I" if len(view) == 4 else "Q")
    with _FALLBACK:
        old: int = word[0]
        if operation is AtomicOp.FETCH_ADD:
            word[0] = (old + operand) & ((1 << (8 * len(view))) - 1)
        elif operation is AtomicOp.SWAP or old == compare:
            word[0] = operand
    return old
