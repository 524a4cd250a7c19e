"""The downstream half of the link, asked of a server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from softcard.bridge.vfio_user.client import Client, LostError
from softcard.bridge.vfio_user.interrupts import Wires
from softcard.bridge.vfio_user.regions import RemoteBar, RemoteFile
from softcard.bridge.vfio_user.remote import Remote
from softcard.errors import PlugError
from softcard.model.dma import Dma
from softcard.model.endpoint import Endpoint
from softcard.model.function import Function
from softcard.model.link import ResetKind, SharedRange, Upstream, all_ones
from softcard.model.loop import CardLoop
from softcard.pcie.capabilities import Msi, MsiX
from softcard.pcie.config import CONFIG_SIZE
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Command, Region

log = logging.getLogger("softcard.bridge")

# Where the driver sees this card's own values: command, header type (it is a card's only
# function), BARs, ROM, interrupt line and pin.
COMMAND = (0x04, 2)
OWN_HEADER = (COMMAND, (0x0E, 1), (0x10, 24), (0x30, 4), (0x3C, 2))
CONTROL_OFFSET, CONTROL_SIZE = 2, 2
INITIATE_FLR = 1 << 15
# What a bus calls an address, or will; libvfio-user takes twice as much at the most.
ALL_MEMORY = 1 << 42


class RemoteEndpoint(Endpoint):
    """Forwards what a bus asks to the server.

    Configuration space is the server's, but for what the bus and the interrupt logic need here:
    those registers live in the function's own configuration space, and are written in both.

    Args:
        function: the card.
        remote: the server.
        reconnect: connects again where the connection has ended; raises `PlugError`.
    """

    def __init__(self, function: Function, remote: Remote, reconnect: Callable[[], object]) -> None:
        super().__init__(function)
        self._remote = remote
        self._reconnect = reconnect
        msi, self._msix = function.capability(Msi), function.capability(MsiX)
        self._controls = [
            (capability.base + CONTROL_OFFSET, CONTROL_SIZE)
            for capability in (msi, self._msix)
            if capability is not None
        ]
        self._own = bytearray(CONFIG_SIZE)
        own = [*OWN_HEADER, *self._controls]
        if msi is not None:
            own.append((msi.base + CONTROL_OFFSET, msi.size - CONTROL_OFFSET))
        for at, size in own:
            self._own[at : at + size] = b"\xff" * size
        pin = bool(function.config.header.interrupt_pin.value)
        self._wires = Wires(function.interrupts, msi, self._msix, pin=pin)
        self._upstream: Upstream | None = None
        self._loop: CardLoop | None = None
        self._client: Client | None = None
        self._mapped: list[tuple[int, int]] = []

    @property
    def dma(self) -> Dma:
        """The driver's memory."""
        return self.function.dma

    # Plugging.

    def connect(self, upstream: Upstream) -> None:
        """See `Downstream.connect`."""
        super().connect(upstream)
        self._upstream = upstream
        self._remote.plugged = self
        try:
            self._reconnect()
        except PlugError as error:
            log.warning("%s", error)
            upstream.link_down()
            return
        client, description = self._remote.client, self._remote.description
        assert client is not None and description is not None
        self._client = client
        self._wires.attach(client, description.irqs)
        self._loop = self.function.loop
        self._loop.add_poller(self)
        self._loop.add_reader(client.events.fileno(), self.poll)
        if not upstream.features.announces_memory:
            self._map(0, ALL_MEMORY, None)

    def disconnect(self) -> None:
        """See `Downstream.disconnect`."""
        super().disconnect()
        while self._mapped:
            self._unmap(*self._mapped[-1])
        self._remote.attempt(lambda client: self._wires.off())
        self._part()
        self._upstream = self._remote.plugged = None

    def lost(self) -> None:
        """The connection has ended: the card has gone."""
        self._part()
        self._mapped.clear()
        if self._upstream is not None:
            self._upstream.link_down()

    def _part(self) -> None:
        """Have no more to do with the server."""
        self._wires.detach()
        if self._client is not None and self._loop is not None:
            self._loop.remove_poller(self)
            self._loop.remove_reader(self._client.events.fileno())
        self._client = self._loop = None

    # What the server sends by itself; see `Poller`.

    def poll(self) -> bool:
        """Take interrupts, and answer DMA."""
        try:
            return self._client is not None and self._client.serve()
        except LostError:
            return True  # `lost` has been called

    def arm(self) -> bool:
        """Descriptors wake the loop, but not what has been received already."""
        return self._client is not None and self._client.waiting

    def disarm(self) -> None:
        """See `Poller`."""

    def interrupt(self, kind: int, vector: int, asserted: bool) -> None:
        """An interrupt has come as a message."""
        self._wires.message(kind, vector, asserted)

    def signalled(self, fd: int) -> None:
        """An interrupt has come."""
        self._wires.take(fd)

    def _settle(self) -> None:
        if self._wires.asserted:
            self._remote.attempt(lambda client: self._wires.settle())

    # Configuration space.

    def config_read(self, offset: int, size: int) -> int:
        """See `Downstream.config_read`; also before the card is plugged in, for a bus that has to
        know what it gets."""
        end = offset + size
        description = self._remote.description
        if not self._remote.alive or description is None or not 0 <= offset <= CONFIG_SIZE - size:
            return all_ones(size)
        own = int.from_bytes(self._own[offset:end], "little")
        value = super().config_read(offset, size) & own
        if own == all_ones(size):
            return value
        if end > description.regions[Region.CONFIG].size:
            return all_ones(size)
        theirs = int.from_bytes(self._remote.read(Region.CONFIG, offset, size), "little")
        return value | theirs & ~own

    def config_write(self, offset: int, size: int, value: int) -> None:
        """See `Downstream.config_write`.

        The interrupts are wired before the server learns that they are enabled: none is lost.
        """
        if not self._remote.alive or not 0 <= offset <= CONFIG_SIZE - size:
            return
        super().config_write(offset, size, value)
        if self._client is None:
            return  # a bus tries how large the BARs are, before the card is plugged in
        self._remote.attempt(lambda client: self._wires.follow())
        self._remote.write_config(offset, size, value)
        if self._starts_flr(offset, size, value):
            self._reset_here(ResetKind.FLR)
        self.poll()
        self._settle()

    def _starts_flr(self, offset: int, size: int, value: int) -> bool:
        description = self._remote.description
        control = description.flr_control if description is not None else None
        if control is None:
            return False
        shift = 8 * (offset - control)
        written = value << shift if shift >= 0 else value >> -shift
        return offset + size > control and bool(written & INITIATE_FLR)

    def reset(self, kind: ResetKind) -> None:
        """See `Downstream.reset`."""
        self._remote.reset()
        self._reset_here(kind)

    def _reset_here(self, kind: ResetKind) -> None:
        """What of the function is here, too, is reset; and the server hears of it."""
        super().reset(kind)
        self._remote.attempt(lambda client: self._wires.reset())
        for at, size in (COMMAND, *self._controls):
            self._remote.write_config(at, size, self.function.config.read(at, size))

    # Memory.

    def read(self, bar: int, offset: int, size: int) -> int:
        """See `Downstream.read`. What the server signalled before its answer is delivered before
        this returns, as a completion pushes messages."""
        client = self._client
        if client is None:
            return all_ones(size)
        before = client.ident
        value = super().read(bar, offset, size)
        if client.ident == before:
            # The server was not asked.
            self.poll()
        self._settle()
        return value if self._client is not None else all_ones(size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """See `Downstream.write`."""
        super().write(bar, offset, size, value)
        self._table_written(bar, offset, size)
        self._settle()

    def read_block(self, bar: int, offset: int, length: int) -> bytes:
        """See `Downstream.read_block`."""
        remote = self._answering(bar)
        if remote is None:
            return b"\xff" * length
        memory = self._memory(bar, offset, length)
        data = bytes(memory) if memory is not None else remote.read_block(offset, length)
        self.poll()
        self._settle()
        return data if self._client is not None else b"\xff" * length

    def write_block(self, bar: int, offset: int, data: bytes | memoryview) -> None:
        """See `Downstream.write_block`."""
        remote = self._answering(bar)
        if remote is None:
            return
        memory = self._memory(bar, offset, len(data))
        if memory is not None:
            memory[:] = data
        else:
            remote.write_block(offset, data)
        self._table_written(bar, offset, len(data))
        self._settle()

    def _answering(self, bar: int) -> RemoteFile | None:
        """The BAR, if it is enabled."""
        found = self.function.bars.get(bar)
        enabled = self._client is not None and self.answers(bar)
        return found.remote if enabled and isinstance(found, RemoteBar) else None

    def _table_written(self, bar: int, offset: int, length: int) -> None:
        """A vector may have been unmasked for the first time."""
        if self._msix is None or self._msix.table[0] != bar:
            return
        start = self._msix.table[1]
        if offset < start + self._msix.table_region.size and start < offset + length:
            self._remote.attempt(lambda client: self._wires.follow())

    def shared_ranges(self) -> Sequence[SharedRange]:
        """See `Downstream.shared_ranges`."""
        bars = self.function.bars.values()
        return [shared for bar in bars if isinstance(bar, RemoteBar) for shared in bar.shared()]

    def vectors_wired(self, vectors: Collection[int]) -> None:
        """See `Downstream.vectors_wired`."""
        super().vectors_wired(vectors)
        self._remote.attempt(lambda client: self._wires.deliver(vectors))

    # The driver's memory.

    def memory_added(self, address: int, size: int) -> None:
        """See `Downstream.memory_added`."""
        super().memory_added(address, size)
        client, upstream = self._client, self._upstream
        if client is not None and upstream is not None and upstream.features.announces_memory:
            self._map(address, size, upstream.dma_file(address, size) if client.max_fds else None)

    def _map(self, address: int, size: int, file: tuple[int, int] | None) -> None:
        """Tell the server of memory, with the descriptor and the offset of its file."""
        flags = wire.DMA_READABLE | wire.DMA_WRITABLE
        offset = file[1] if file is not None else 0
        request = wire.DMA_MAP.pack(wire.DMA_MAP.size, flags, offset, address, size)
        fds = [file[0]] if file is not None else []
        if self._remote.attempt(lambda client: client.ask(Command.DMA_MAP, request, fds=fds)):
            self._mapped.append((address, size))

    def memory_removed(self, address: int, size: int) -> None:
        """See `Downstream.memory_removed`: the server has let go of it when this returns."""
        if (address, size) in self._mapped:
            self._unmap(address, size)
        super().memory_removed(address, size)

    def _unmap(self, address: int, size: int) -> None:
        self._mapped.remove((address, size))
        request = wire.DMA_UNMAP.pack(wire.DMA_UNMAP.size, 0, address, size)
        self._remote.attempt(
            lambda client: client.ask(Command.DMA_UNMAP, request, most=wire.DMA_UNMAP.size)
        )
