"""One client's connection to one function: a port of the card's loop."""

from __future__ import annotations

import errno
import logging
import struct
import threading
from collections.abc import Callable
from typing import Any

from softcard.bus.vfio_user import memory
from softcard.bus.vfio_user.absent import Absent
from softcard.bus.vfio_user.accesses import ACCESS_SIZE, BARS, Accesses
from softcard.bus.vfio_user.features import Features
from softcard.bus.vfio_user.interrupts import Interrupts
from softcard.bus.vfio_user.layout import Layout
from softcard.bus.vfio_user.port import Port
from softcard.bus.vfio_user.queries import Queries
from softcard.bus.vfio_user.twin import Twin
from softcard.bus.vfio_user.version import agree
from softcard.model.link import Downstream, ResetKind
from softcard.model.loop import CardLoop
from softcard.wire import vfio_user as wire
from softcard.wire.messages import Message, Messages, close_all
from softcard.wire.stream import HungUpError, MessageStream
from softcard.wire.vfio_user import Command, FormatError

log = logging.getLogger("softcard.bus.vfio_user")

MAX_MESSAGE = wire.HEADER_SIZE + wire.ACCESS.size + wire.DEFAULT_TRANSFER + 4096
AT_ONCE = 1024
REGION_READ = int(Command.REGION_READ)
TAKE_FDS = (Command.DMA_MAP, Command.DEVICE_SET_IRQS)
# A REGION_READ, header included, and its replies by the size of the register.
READ = struct.Struct("<HHIIIQII")
READ_SIZE = READ.size
READ_REPLIES = {
    size: struct.Struct(f"{READ.format}{code}")
    for size, code in zip((1, 2, 4, 8), "BHIQ", strict=True)
}
# A REGION_WRITE of 4 bytes, header included.
REGION_WRITE = int(Command.REGION_WRITE)
WRITE = struct.Struct("<HHIIIQIII")
WRITTEN = 4

Handler = Callable[[bytes, list[int]], bytes]
# The fields of a READ: ident, command, size, flags, error, offset, region, count; those of a WRITE
# have the value behind them.
Access = tuple[Any, ...]


class Connection:
    """Serves a client until it hangs up or breaks the protocol.

    Args:
        stream: the connection.
        function: what is served.
        port: the function's upstream half.
        layout: the function's regions and interrupts.
        loop: the card's loop, on whose thread this runs.
        closed: called once when the client has gone, on the loop's thread.
    """

    def __init__(
        self,
        stream: MessageStream,
        function: Downstream,
        port: Port,
        layout: Layout,
        loop: CardLoop,
        closed: Callable[[Connection], object],
    ) -> None:
        self.function: Downstream = function
        self._passes_fds = stream.passes_fds
        self._port = port
        self._layout = layout
        self._loop = loop
        self._closed = closed
        self._ended = False
        self._warned = False
        self._messages = Messages(stream, MAX_MESSAGE, self._wake)
        self._twin: Twin | None = None
        self._interrupts: Interrupts | None = None
        self._features = Features(function, port.log)
        self._queries = Queries(layout, passes_fds=stream.passes_fds)
        self._accesses = Accesses(function, layout.sizes)
        self._handlers: dict[int, Handler] = {
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._queries.device_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._queries.region_io_fds,
            Command.DEVICE_GET_IRQ_INFO: self._queries.irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._accesses.read,
            Command.REGION_WRITE: self._accesses.write,
            Command.REGION_WRITE_MULTI: self._accesses.write_multi,
            Command.DEVICE_RESET: self._device_reset,
            Command.DEVICE_FEATURE: self._features.request,
            Command.MIG_DATA_READ: self._features.read_data,
            Command.MIG_DATA_WRITE: self._features.write_data,
        }
        # What the card is working on; see `time_out`.
        self._serving: list[Message | Access] = []
        self._stuck = False
        self._stuck_lock = threading.Lock()
        self.served = 0

    def fileno(self) -> int:
        """The socket."""
        return self._messages.fileno()

    def hang_up(self) -> None:
        """End the connection; from any thread. The loop's thread closes it."""
        self._messages.hang_up()

    def close(self) -> None:
        """Take the client's memory and descriptors out of the function's hands, and free all."""
        self._ended = True
        self._port.detach()
        if self._interrupts is not None:
            self._interrupts.close()
            self.function.vectors_wired([])
        for region in self._port.memory.regions:
            self._remove(region)
        if self._twin is not None:
            self._twin.close()
        self._messages.close()

    def pull(self, loop: CardLoop) -> None:
        """The function has gone, but the client stays, and reads all-ones from now on.

        Args:
            loop: in place of the card's loop, for which the connection is no port any more.
        """
        self._port.detach()
        if self._twin is not None:
            self._twin.close()
        self.function.vectors_wired([])
        for region in self._port.memory.regions:
            self.function.memory_removed(region.address, region.size)
        self.function = self._accesses.function = Absent()
        self._loop = loop
        loop.add_port(self)

    # The loop's port.

    def poll(self) -> bool:
        """See `Poller.poll`."""
        messages = self._messages
        if self._ended:
            return False
        try:
            if not (messages.receive() or messages.waiting):
                return False
            read = messages.take_alone(READ)
            if read is not None:
                self._serve_read(read)
                return True
            writes = messages.take_posted(REGION_WRITE, WRITE)
            if writes:
                self._serve_posted(writes)
                if messages.empty:
                    return True
            for _ in range(AT_ONCE):
                message = messages.take()
                if message is None:
                    break
                self._serve(message)
                if self._ended:
                    break
        except (HungUpError, FormatError) as error:
            self._end(error)
        return True

    def arm(self) -> bool:
        """See `Poller.arm`."""
        return self._messages.waiting

    def disarm(self) -> None:
        """See `Poller.disarm`."""

    def receive(self) -> None:
        """See `Port.receive`."""
        self.poll()

    def _wake(self) -> None:
        """Another thread has received commands."""
        try:
            self._loop.call_soon_threadsafe(_nothing)
        except RuntimeError:
            pass  # the loop is closed: nobody serves commands any more

    def _end(self, why: HungUpError | FormatError) -> None:
        if self._ended:
            return
        if isinstance(why, HungUpError):
            log.info("the client has gone: %s", why)
        else:
            log.warning("the client broke the vfio-user protocol: %s", why)
        self._ended = True
        self._closed(self)

    def _serve_read(self, read: Access) -> None:
        """What came alone and looks like a register read: all that is slow about it left out."""
        ident, command, _, _, _, offset, region, count = read
        if (
            command != REGION_READ
            or region >= BARS
            or count not in READ_REPLIES
            or offset + count > self._layout.sizes[region]
            or self._interrupts is None
        ):
            self._serve(_as_message(read))
            return
        self.served += 1
        serving = self._serving
        serving.append(read)
        value = self.function.read(region, offset, count)
        try:
            serving.pop()
        except IndexError:
            if not self._unanswered():
                return
        self._messages.send(
            READ_REPLIES[count].pack(
                ident, command, READ_SIZE + count, wire.REPLY, 0, offset, region, count, value
            )
        )

    def _serve_posted(self, writes: list[Access]) -> None:
        """Register writes that came together and want no reply: doorbells, most likely."""
        sizes, write, serving = self._layout.sizes, self.function.write, self._serving
        ready = self._interrupts is not None
        self.served += 1
        serving.append(writes[0])
        for fields in writes:
            _, _, _, _, _, offset, region, count, value = fields
            if ready and region < BARS and count == WRITTEN and offset + WRITTEN <= sizes[region]:
                write(region, offset, WRITTEN, value)
            else:
                self._serve(_as_message(fields))
        try:
            serving.pop()
        except IndexError:
            self._unanswered()

    def _serve(self, message: Message) -> None:
        """Any message; the descriptors are closed where there is an error."""
        self.served += 1
        self._serving.append(message)
        _, command, _, payload, fds = message
        error, answer = 0, b""
        reply_fds: list[int] = []
        try:
            if fds and command not in TAKE_FDS:
                raise OSError(errno.EINVAL, f"descriptors came with command {command}")
            if self._interrupts is None:
                if command != Command.VERSION:
                    raise FormatError(f"its first message is command {command}, not VERSION")
                answer, reply_fds = self._version(payload)
            elif command == Command.DEVICE_GET_REGION_INFO:
                answer, fd = self._queries.region_info(payload)
                reply_fds = [] if fd is None else [fd]
            else:
                handler = self._handlers.get(command)
                if handler is None:
                    raise OSError(errno.ENOTSUP, f"command {command} is not known")
                answer = handler(payload, fds)
        except struct.error as wrong:
            error = errno.EINVAL
            log.info("command %d of %d bytes: %s", command, len(payload), wrong)
        except OSError as refused:
            error = refused.errno or errno.EIO
            log.info("command %d is refused: %s", command, refused.strerror)
        except BaseException:
            close_all(fds)
            raise
        if error:
            close_all(fds)
        try:
            self._serving.pop()
        except IndexError:
            if not self._unanswered():
                return
        if error:
            self._messages.reply_error(message, error)
        else:
            self._messages.reply(message, answer, reply_fds)
        if command == Command.VERSION and self._twin is not None:
            self._twin.passed()

    # Version.

    def _version(self, payload: bytes) -> tuple[bytes, list[int]]:
        terms = agree(payload, passes_fds=self._passes_fds)
        if terms.twin:
            self._twin = Twin(MAX_MESSAGE, self._loop, self._end)
            self._messages.ask_over(self._twin.messages)
        self._interrupts = Interrupts(self._layout.irqs, self, by_messages=terms.by_messages)
        self._port.attach(self._messages, self._interrupts, terms)
        return terms.reply, [] if self._twin is None else [self._twin.fd]

    # Memory.

    def _dma_map(self, payload: bytes, fds: list[int]) -> bytes:
        _, flags, offset, address, size = wire.DMA_MAP.unpack(payload)
        if flags & ~(wire.DMA_READABLE | wire.DMA_WRITABLE) or len(fds) > 1:
            raise OSError(errno.EINVAL, f"DMA_MAP with flags {flags:#x}, {len(fds)} descriptors")
        self._port.memory.add(
            address,
            size,
            readable=bool(flags & wire.DMA_READABLE),
            writable=bool(flags & wire.DMA_WRITABLE),
            fd=fds[0] if fds else None,
            offset=offset,
        )
        if not fds and self._passes_fds and flags & wire.DMA_WRITABLE and not self._warned:
            self._warned = True
            log.warning(
                "the client shares no memory: DMA goes by messages, which is slow, and which QEMU "
                "bears badly; give QEMU -object memory-backend-memfd,share=on"
            )
        self.function.memory_added(address, size)
        return b""

    def _dma_unmap(self, payload: bytes, fds: list[int]) -> bytes:
        payload = payload[: wire.DMA_UNMAP.size]
        _, flags, address, size = wire.DMA_UNMAP.unpack(payload)
        if flags:
            raise OSError(errno.EINVAL, f"DMA_UNMAP with flags {flags:#x}")
        region = self._port.memory.find(address, size)
        self._remove(region)
        return payload

    def _remove(self, region: memory.Region) -> None:
        self.function.memory_removed(region.address, region.size)
        self._port.memory.remove(region)
        if self._port.log is not None:
            self._port.log.removed(region.address, region.size)

    # Interrupts and resets.

    def _set_irqs(self, payload: bytes, fds: list[int]) -> bytes:
        _, flags, kind, start, count = wire.SET_IRQS.unpack_from(payload)
        assert self._interrupts is not None
        self._interrupts.set(flags, kind, start, count, payload[wire.SET_IRQS.size :], fds)
        return b""

    def _device_reset(self, payload: bytes, fds: list[int]) -> bytes:
        if payload:
            raise OSError(errno.EINVAL, f"DEVICE_RESET with {len(payload)} bytes")
        self.function.reset(ResetKind.HOT)
        self._features.reset()
        return b""

    # What the interrupts ask for.

    def vectors_wired(self, vectors: list[int]) -> None:
        """See `interrupts.Host`."""
        self.function.vectors_wired(vectors)

    def watch(self, fd: int, call: Callable[[], object]) -> None:
        """See `interrupts.Host`."""
        self._loop.add_reader(fd, call)

    def unwatch(self, fd: int) -> None:
        """See `interrupts.Host`."""
        self._loop.remove_reader(fd)

    def send_interrupt(self, kind: int, vector: int, asserted: bool) -> None:
        """See `interrupts.Host`."""
        try:
            self._messages.post(Command.INTERRUPT, wire.INTERRUPT.pack(kind, vector, asserted))
        except HungUpError:
            pass  # the loop hears of it

    # The completion time-out, on another thread. Whoever takes the message out of `_serving`
    # answers it: the card's thread nearly always, the other one when the card does not return.

    @property
    def progress(self) -> int | None:
        """A number that changes with each message; None while the card is not in one."""
        return self.served if self._serving or self._stuck else None

    def time_out(self) -> int:
        """Answer every read that waits with all-ones; how many there were.

        What else comes behind a message that the card does not finish keeps waiting, in order.
        """
        with self._stuck_lock:
            reads = []
            try:
                serving = self._serving.pop()
                if not isinstance(serving, Message):
                    serving = _as_message(serving)
                if _is_read(serving):
                    self._stuck = True
                    reads.append(serving)
                else:
                    self._serving.append(serving)
            except IndexError:
                if not self._stuck:
                    return 0  # the card has just returned
            try:
                reads += self._messages.take_if(_is_read)
                for read in reads:
                    self._answer_all_ones(read)
            except (HungUpError, FormatError):
                pass  # the loop will hear of it
        return len(reads)

    def _unanswered(self) -> bool:
        """The card has returned, and `time_out` has the message in hand: is it still to be
        answered?"""
        with self._stuck_lock:
            self._stuck = False
            return bool(self._serving) and bool(self._serving.pop())

    def _answer_all_ones(self, message: Message) -> None:
        _, _, count = wire.ACCESS.unpack(message.payload)
        if count > wire.DEFAULT_TRANSFER:
            self._messages.reply_error(message, errno.EINVAL)
        else:
            self._messages.reply(message, message.payload + b"\xff" * count)


def _as_message(fields: Access) -> Message:
    ident, command, size, flags, _, *_ = fields
    form = READ if size == READ_SIZE else WRITE
    return Message(ident, command, flags, form.pack(*fields)[wire.HEADER_SIZE :], [])


def _is_read(message: Message) -> bool:
    return message.command == REGION_READ and len(message.payload) == ACCESS_SIZE


def _nothing() -> None:
    """Only wakes the loop."""
