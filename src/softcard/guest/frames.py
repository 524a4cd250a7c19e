"""The frames that host and agent exchange over a byte stream.

0        4      5    9
+--------+------+----+----------
| length | kind | id | payload
+--------+------+----+----------

`length` counts the payload; `id` names the command that a frame belongs to. This file is loaded
by the agent inside the guest as well: standard library only, and little of it.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<IBI")
MAX_PAYLOAD = 1 << 20
# What the host may have on its way: a terminal line in the guest loses what does not fit its 4 KiB.
WINDOW = 3072

# Host to agent; the payload of the first three is marshalled: it is one Python at both ends.
RUN, CALL, RESIZE = 1, 2, 3
INPUT, END_OF_INPUT, SIGNAL = 4, 5, 6
# Agent to host.
READY, OUTPUT, ERROR_OUTPUT, EXIT, RESULT, FAILURE, TAKEN = 16, 17, 18, 19, 20, 21, 22


def pack(kind: int, ident: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(len(payload), kind, ident) + payload


class FrameReader:
    """Cuts a byte stream into frames.

    Args:
        greeting: what the other end says first whenever it starts anew, if it ever does; all that
            came before that belongs to its former life, and is forgotten.

    Attributes:
        greeted: how often the greeting has come.
        fresh: bytes of what was fed last, without the greeting and what came before it.
    """

    def __init__(self, greeting: bytes = b"") -> None:
        self._buffer = bytearray()
        self._greeting = greeting
        self.greeted = 0
        self.fresh = 0

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The `(kind, id, payload)` frames that `data` completes.

        Raises:
            ValueError: the stream is not made of frames.
        """
        seen = max(len(self._buffer) - len(self._greeting) + 1, 0)
        self._buffer += data
        self.fresh = len(data)
        if self._greeting:
            at = self._buffer.rfind(self._greeting, seen)
            if at >= 0:
                self.greeted += 1
                del self._buffer[: at + len(self._greeting)]
                self.fresh = len(self._buffer)
            elif not self.greeted:
                del self._buffer[: -len(self._greeting)]
                self.fresh = 0
                return []
        frames = []
        while len(self._buffer) >= HEADER.size:
            length, kind, ident = HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD:
                raise ValueError(f"a frame of {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, ident, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return frames
