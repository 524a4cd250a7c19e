"""A vfio-user server, message by message, which a test can make lie."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from softcard.pcie.capabilities import MsiX
from softcard.pcie.config import BarLayout, ConfigSpace, Identity
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Command, Irq, Region

BAR_SIZE = 0x4000
TABLE = 0x1000
VECTORS = 4
CONFIG_SIZE = 256

# The reply's payload, None for no reply at all; raises OSError for an error reply.
Answer = Callable[[bytes, list[int]], "bytes | Raw | None"]


class Raw(bytes):
    """A whole message, header included, instead of a payload."""


class FakeServer:
    """Listens at a socket in `folder` and serves one client, on a thread of its own.

    Attributes:
        answers: what replies to each command, by its number; a test replaces some.
        seen: the commands that have come, replies included.
        ident: that of the last message.
        replies: ident, flags and payload of the client's replies.
        sock: the connection; once there is one.
        eventfds: those that SET_IRQS has brought, by type and number.
        bar: content of BAR 0.
        reply_fds: descriptors that go with the next reply to a command; they stay the test's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fake"
        self.config = ConfigSpace(
            Identity(0x1DED, 0xFA4E, interrupt_pin=1),
            {0: BarLayout(BAR_SIZE)},
            [MsiX(vectors=VECTORS, table=(0, TABLE), pba=(0, TABLE + 0x800))],
        )
        self.bar = bytearray(BAR_SIZE)
        self.seen: list[int] = []
        self.ident = 0
        self.replies: list[tuple[int, int, bytes]] = []
        self.eventfds: dict[tuple[int, int], int] = {}
        self.reply_fds: dict[int, list[int]] = {}
        self.sock: socket.socket | None = None
        self.capabilities: dict[str, object] = {"max_msg_fds": 2}
        self.answers: dict[int, Answer] = {
            Command.VERSION: lambda payload, fds: wire.pack_version(0, 1, self.capabilities),
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._read,
            Command.REGION_WRITE: self._write,
            Command.DMA_MAP: lambda payload, fds: b"",
            Command.DMA_UNMAP: lambda payload, fds: payload,
            Command.DEVICE_RESET: lambda payload, fds: b"",
        }
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._thread.join(10)
        self._listener.close()
        for fd in self.eventfds.values():
            os.close(fd)

    def hang_up(self) -> None:
        """End the connection."""
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was quicker

    def _run(self) -> None:
        while True:
            try:
                self.sock, _ = self._listener.accept()
            except OSError:
                return
            with self.sock:
                try:
                    while self._serve(self.sock):
                        pass
                except OSError:
                    pass  # the client has gone

    def _serve(self, sock: socket.socket) -> bool:
        header, fds, _, _ = socket.recv_fds(sock, wire.HEADER_SIZE, 64, socket.MSG_WAITALL)
        if len(header) < wire.HEADER_SIZE:
            return False
        ident, command, size, flags, _ = wire.HEADER.unpack(header)
        payload = b""
        while len(payload) < size - wire.HEADER_SIZE:
            payload += sock.recv(size - wire.HEADER_SIZE - len(payload))
        self.ident = ident
        self.seen.append(command)
        if flags & wire.TYPE_MASK == wire.REPLY:
            self.replies.append((ident, flags, payload))
            return True
        error, answer = 0, None
        try:
            answer = self.answers[command](payload, fds)
        except OSError as refused:
            error, answer = refused.errno or 0, b""
        if command != Command.DEVICE_SET_IRQS:
            for fd in fds:
                os.close(fd)
        if answer is None or flags & wire.NO_REPLY:
            return True
        if not isinstance(answer, Raw):
            answer = message(ident, command, answer, error=error)
        socket.send_fds(sock, [answer], self.reply_fds.pop(command, []))
        return True

    def ask(self, command: int, payload: bytes, *, flags: int = 0, ident: int = 0x77) -> None:
        """Send a command of the server's; its reply is added to `replies`."""
        assert self.sock is not None
        self.sock.sendall(message(ident, command, payload, flags=flags))

    # What an honest server replies.

    def _device_info(self, payload: bytes, fds: list[int]) -> bytes:
        flags = wire.DEVICE_RESETS | wire.DEVICE_IS_PCI
        return wire.DEVICE_INFO.pack(wire.DEVICE_INFO.size, flags, wire.REGIONS, wire.IRQS)

    def _region_info(self, payload: bytes, fds: list[int]) -> bytes:
        index = struct.unpack_from("<I", payload, 8)[0]
        size = {0: BAR_SIZE, Region.CONFIG: CONFIG_SIZE}.get(index, 0)
        flags = wire.REGION_READABLE | wire.REGION_WRITABLE if size else 0
        return wire.REGION_INFO.pack(wire.REGION_INFO.size, flags, index, 0, size, 0)

    def _irq_info(self, payload: bytes, fds: list[int]) -> bytes:
        kind = struct.unpack_from("<I", payload, 8)[0]
        count = {Irq.INTX: 1, Irq.MSIX: VECTORS}.get(kind, 0)
        return wire.IRQ_INFO.pack(wire.IRQ_INFO.size, wire.IRQ_EVENTFD, kind, count)

    def _set_irqs(self, payload: bytes, fds: list[int]) -> bytes:
        _, _, kind, start, _ = wire.SET_IRQS.unpack_from(payload)
        for number, fd in enumerate(fds, start):
            if (kind, number) in self.eventfds:
                os.close(self.eventfds[kind, number])
            self.eventfds[kind, number] = fd
        return b""

    def _read(self, payload: bytes, fds: list[int]) -> bytes:
        offset, region, count = wire.ACCESS.unpack(payload)
        if region == Region.CONFIG:
            data = b"".join(self.config.read(offset + i, 1).to_bytes() for i in range(count))
        else:
            data = bytes(self.bar[offset : offset + count])
        return payload + data

    def _write(self, payload: bytes, fds: list[int]) -> bytes:
        offset, region, count = wire.ACCESS.unpack_from(payload)
        data = payload[wire.ACCESS.size :]
        if region == Region.CONFIG:
            self.config.write(offset, count, int.from_bytes(data, "little"))
        else:
            self.bar[offset : offset + count] = data
        return payload[: wire.ACCESS.size]


def message(
    ident: int, command: int, payload: bytes, *, flags: int = wire.REPLY, error: int = 0
) -> Raw:
    """A whole message."""
    flags |= wire.ERROR if error else 0
    size = wire.HEADER_SIZE + len(payload)
    return Raw(wire.HEADER.pack(ident, command, size, flags, error) + payload)


def region_info(
    index: int, size: int, *, flags: int, areas: Sequence[tuple[int, int]] = (), base: int = 0
) -> bytes:
    """A REGION_INFO reply with a sparse mmap capability."""
    capability = (
        wire.CAPABILITY.pack(wire.CAPABILITY_SPARSE_MMAP, 1, 0)
        + wire.SPARSE_MMAP.pack(len(areas), 0)
        + b"".join(wire.AREA.pack(*area) for area in areas)
    )
    room = wire.REGION_INFO.size
    info = wire.REGION_INFO.pack(
        room + len(capability), flags | wire.REGION_CAPABILITIES, index, room, size, base
    )
    return info + capability
