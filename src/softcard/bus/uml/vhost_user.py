"""The vhost-user protocol as User Mode Linux speaks it; we are the back-end.

Header, then payload:

0         4       8      12
+---------+-------+------+---------
| request | flags | size | payload
+---------+-------+------+---------
"""

from __future__ import annotations

import array
import enum
import logging
import os
import socket
import struct
from collections.abc import Callable

from softcard.bus.uml.pcidev import PciDevice
from softcard.bus.uml.vring import Vring
from softcard.errors import DmaError
from softcard.model.link import Downstream

log = logging.getLogger("softcard.bus.uml")

HEADER = struct.Struct("<III")
U64 = struct.Struct("<Q")
STATE = struct.Struct("<II")
ADDRESSES = struct.Struct("<IIQQQQ")
MEMORY_COUNT = struct.Struct("<II")
MEMORY_REGION = struct.Struct("<QQQQ")
VERSION_REPLY = 0x5
NEED_REPLY = 0x8
MAX_FDS = 8
MAX_PAYLOAD = 4096
QUEUES = 2
RECEIVE_SIZE = 1 << 16

VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
SLAVE_REQ, CONFIG, INBAND_NOTIFICATIONS = 1 << 5, 1 << 9, 1 << 14
# Without REPLY_ACK: it would make every kick of the guest wait for an answer of ours.
OFFERED_FEATURES = VERSION_1 | PROTOCOL_FEATURES
OFFERED_PROTOCOL = SLAVE_REQ | CONFIG | INBAND_NOTIFICATIONS


class Request(enum.IntEnum):
    """Requests of the front-end that User Mode Linux sends."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    SET_VRING_ENABLE = 18
    SET_SLAVE_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    VRING_KICK = 35


KICK = int(Request.VRING_KICK)
# SLAVE_VRING_CALL, version 1, 8 bytes: the queue's number and nothing.
CALLS = [struct.pack("<IIIII", 4, 1, 8, queue, 0) for queue in range(QUEUES)]


class ProtocolError(Exception):
    """The peer does not speak vhost-user; the connection must end."""


class Connection:
    """One vhost-user connection: a port of the card's loop.

    Args:
        stream: the accepted socket.
        function: what is served.
        closed: called once when the guest has gone, on the loop's thread.
    """

    def __init__(
        self, stream: socket.socket, function: Downstream, closed: Callable[[], None]
    ) -> None:
        self.device = PciDevice(function, self._call, self.hang_up)
        self.poll = self.device.poll
        self.arm = self.device.arm
        self.disarm = self.device.disarm
        self._stream = stream
        self._closed = closed
        self._buffer = bytearray()
        self._scratch = bytearray(RECEIVE_SIZE)
        self._call_fd = -1
        self._sizes = [0] * QUEUES
        self._addresses: list[tuple[int, int, int] | None] = [None] * QUEUES
        stream.setblocking(False)

    def fileno(self) -> int:
        """The socket."""
        return self._stream.fileno()

    def hang_up(self) -> None:
        """Let the guest see a surprise removal; from any thread. The loop's thread closes."""
        try:
            self._stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone already

    def close(self) -> None:
        """Hang up and free all resources, on the loop's thread."""
        self._stop_queues()
        if self._call_fd >= 0:
            os.close(self._call_fd)
            self._call_fd = -1
        self._stream.close()

    def _stop_queues(self) -> None:
        for queue in range(QUEUES):
            self.device.stop(queue)
        self.device.memory.clear(self.device.function.memory_removed)

    def receive(self) -> None:
        """Take what has come: nearly always kicks, which only say that `poll` has work."""
        try:
            count, ancillary, _, _ = self._stream.recvmsg_into(
                [self._scratch], socket.CMSG_SPACE(4 * MAX_FDS)
            )
        except BlockingIOError:
            return
        except OSError:
            count, ancillary = 0, []
        fds = _descriptors(ancillary)
        try:
            if count == 0:
                raise ProtocolError("")
            self._buffer += memoryview(self._scratch)[:count]
            self._parse(fds)
        except (ProtocolError, DmaError, ValueError, OSError, struct.error) as error:
            if str(error):
                log.warning("the guest broke the vhost-user protocol: %s", error)
            self._stop_queues()
            self._closed()
        finally:
            for fd in fds:
                os.close(fd)

    def _parse(self, fds: list[int]) -> None:
        buffer = self._buffer
        at = 0
        while len(buffer) - at >= HEADER.size:
            request, flags, size = HEADER.unpack_from(buffer, at)
            if size > MAX_PAYLOAD:
                raise ProtocolError(f"request {request} with {size} bytes")
            end = at + HEADER.size + size
            if len(buffer) < end:
                break
            if request != KICK:
                # The kernel never merges data behind descriptors: they are the last message's.
                last = fds if len(buffer) == end else []
                self._handle(request, flags, bytes(buffer[at + HEADER.size : end]), last)
            at = end
        del buffer[:at]

    def _handle(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        answer: bytes | None = None
        if request == Request.GET_FEATURES:
            answer = U64.pack(OFFERED_FEATURES)
        elif request == Request.GET_PROTOCOL_FEATURES:
            answer = U64.pack(OFFERED_PROTOCOL)
        elif request == Request.GET_CONFIG:
            answer = payload
        elif request == Request.SET_MEM_TABLE:
            self._set_memory(payload, fds)
        elif request == Request.SET_SLAVE_REQ_FD:
            self._set_call_fd(fds)
        elif request == Request.SET_VRING_NUM:
            queue, size = self._queue(payload)
            self._sizes[queue] = size
        elif request == Request.SET_VRING_ADDR:
            queue, _, desc, used, avail, _ = ADDRESSES.unpack(payload)
            if queue >= QUEUES:
                raise ProtocolError(f"queue {queue}")
            self._addresses[queue] = (desc, avail, used)
        elif request == Request.SET_VRING_ENABLE:
            self._enable(*self._queue(payload))
        elif request not in (
            Request.SET_FEATURES, Request.SET_OWNER, Request.SET_VRING_BASE,
            Request.SET_PROTOCOL_FEATURES, Request.SET_CONFIG,
        ):  # fmt: skip
            raise ProtocolError(f"request {request} is none of ours")
        if answer is None and flags & NEED_REPLY:
            answer = U64.pack(0)
        if answer is not None:
            self._stream.sendall(HEADER.pack(request, VERSION_REPLY, len(answer)) + answer)

    @staticmethod
    def _queue(payload: bytes) -> tuple[int, int]:
        queue, value = STATE.unpack(payload)
        if queue >= QUEUES:
            raise ProtocolError(f"queue {queue}")
        return queue, value

    def _set_memory(self, payload: bytes, fds: list[int]) -> None:
        count, _ = MEMORY_COUNT.unpack_from(payload)
        if count != len(fds):
            raise ProtocolError(f"{count} memory regions with {len(fds)} descriptors")
        self._stop_queues()
        for index, fd in enumerate(fds):
            address, size, _, offset = MEMORY_REGION.unpack_from(
                payload, MEMORY_COUNT.size + index * MEMORY_REGION.size
            )
            self.device.memory.add(address, size, fd, offset)
            self.device.function.memory_added(address, size)

    def _set_call_fd(self, fds: list[int]) -> None:
        if len(fds) != 1:
            raise ProtocolError(f"{len(fds)} descriptors for interrupts")
        if self._call_fd >= 0:
            os.close(self._call_fd)
        self._call_fd = os.dup(fds[0])
        os.set_blocking(self._call_fd, False)

    def _enable(self, queue: int, enable: int) -> None:
        addresses = self._addresses[queue]
        if not enable:
            self.device.stop(queue)
        elif addresses is None:
            raise ProtocolError(f"queue {queue} has no addresses")
        else:
            desc, avail, used = addresses
            vring = Vring(self.device.memory, self._sizes[queue], desc, avail, used)
            self.device.start(queue, vring)

    def _call(self, queue: int) -> None:
        """Interrupt the guest; from any thread."""
        try:
            os.write(self._call_fd, CALLS[queue])
        except BlockingIOError:
            # The pipe is full of calls that the guest has not taken: it will see this work too.
            pass
        except OSError:
            # The guest is gone or going; the socket tells the loop so.
            pass


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()
