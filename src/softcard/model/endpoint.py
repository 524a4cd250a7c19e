"""The downstream half of the link, as a function implements it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from softcard.errors import DeclarationError
from softcard.model import state
from softcard.model.bar import Bar, Memory, Shadow
from softcard.model.link import (
    PowerState,
    ResetKind,
    SharedRange,
    Upstream,
    all_ones,
)
from softcard.pcie.capabilities import PciExpress, PowerManagement
from softcard.pcie.config import BAR_COUNT
from softcard.pcie.register_file import RegisterFile

if TYPE_CHECKING:
    from softcard.model.function import Function

log = logging.getLogger("softcard.card")

PAGE = 4096
BLOCK_ACCESS = 4
ERRORS_KEPT = 100
BAR_NAMES = [f"bar{number}" for number in range(BAR_COUNT)]


@dataclass(frozen=True)
class HandlerError:
    """An exception that a card's own code raised, and what the driver was doing then."""

    doing: str
    exception: BaseException


class Endpoint:
    """Dispatches what a bus asks of a function to its registers and hooks.

    An exception in a card's handler is logged with its traceback and kept in `errors`; the read
    that caused it gives all-ones, as an unsupported request does, and the bus stays alive.

    Attributes:
        errors: the last exceptions of the card's code.
        error_count: how many there have been.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.errors: deque[HandlerError] = deque(maxlen=ERRORS_KEPT)
        self.error_count = 0
        self._files: dict[int, RegisterFile] = {n: bar.file for n, bar in function.bars.items()}
        self._readers: list[Callable[[int, int], int]] = [_no_read] * BAR_COUNT
        self._writers: list[Callable[[int, int, int], None]] = [_no_write] * BAR_COUNT
        self._power = PowerState.D0
        self._suspended = False
        config = function.config
        config.on_write(config.header.command, self._command_written)
        for capability in config.capabilities:
            if isinstance(capability, PowerManagement):
                config.on_write(capability.pmcsr, partial(self._pmcsr_written, capability))
            elif isinstance(capability, PciExpress):
                config.on_write(capability.device_control, self._device_control_written)

    # What the bus asks.

    def connect(self, upstream: Upstream) -> None:
        """See `Downstream.connect`."""
        self.function.dma.attach(upstream)
        self.function.interrupts.attach(upstream)

    def disconnect(self) -> None:
        """See `Downstream.disconnect`."""
        self.function.dma.attach(None)
        self.function.interrupts.attach(None)
        self.guarded("unplug", self.function.on_unplug)

    def config_read(self, offset: int, size: int) -> int:
        """See `Downstream.config_read`."""
        return self.function.config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """See `Downstream.config_write`."""
        try:
            self.function.config.write(offset, size, value)
        except Exception as error:
            self.report(f"configuration write of {value:#x} at {offset:#x}", error)

    def read(self, bar: int, offset: int, size: int) -> int:
        """See `Downstream.read`."""
        try:
            return self._readers[bar](offset, size) & ((1 << (size << 3)) - 1)
        except Exception as error:
            self.report(f"read of {size} bytes at {self._place(bar, offset)}", error)
            return all_ones(size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """See `Downstream.write`."""
        try:
            self._writers[bar](offset, size, value)
        except Exception as error:
            self.report(f"write of {value:#x} at {self._place(bar, offset)}", error)

    def read_block(self, bar: int, offset: int, length: int) -> bytes:
        """See `Downstream.read_block`."""
        memory = self._memory(bar, offset, length)
        if memory is not None:
            return bytes(memory)
        if not self.answers(bar):
            return b"\xff" * length
        data = bytearray(length)
        for at, size in self._accesses(bar, offset, length):
            start = at - offset
            memory = self._memory(bar, at, size)
            part = self.read(bar, at, size).to_bytes(size, "little") if memory is None else memory
            data[start : start + size] = part
        return bytes(data)

    def write_block(self, bar: int, offset: int, data: bytes | memoryview) -> None:
        """See `Downstream.write_block`."""
        memory = self._memory(bar, offset, len(data))
        if memory is not None:
            memory[:] = data
            return
        if not self.answers(bar):
            return
        for at, size in self._accesses(bar, offset, len(data)):
            part = data[at - offset :][:size]
            memory = self._memory(bar, at, size)
            if memory is None:
                self.write(bar, at, size, int.from_bytes(part, "little"))
            else:
                memory[:] = part

    def reset(self, kind: ResetKind) -> None:
        """See `Downstream.reset`."""
        function = self.function
        power_on, function_level = kind is ResetKind.POWER_ON, kind is ResetKind.FLR
        function.config.restore(power_on, function_level)
        for file in self._files.values():
            file.restore(power_on, function_level)
        self._power = PowerState.D0
        self._suspended = False
        function.interrupts.reset()
        self._follow_command()
        self.guarded(kind.value, function.on_reset, kind)

    def vectors_wired(self, vectors: Collection[int]) -> None:
        """See `Downstream.vectors_wired`."""
        self.function.interrupts.set_wired(vectors)

    def memory_added(self, address: int, size: int) -> None:
        """See `Downstream.memory_added`."""
        self.function.dma.added(address, size)

    def memory_removed(self, address: int, size: int) -> None:
        """See `Downstream.memory_removed`."""
        self.function.dma.removed(address, size)
        self.guarded("removal of DMA memory", self.function.on_memory_removed, address, size)

    def shared_ranges(self) -> Sequence[SharedRange]:
        """See `Downstream.shared_ranges`."""
        return [
            SharedRange(
                number, memory.offset, memory.size, bar.memory_fd, memory.offset,
                shadow=isinstance(memory, Shadow),
            )
            for number, bar in self.function.bars.items()
            for memory in bar.memories
            if memory.offset % PAGE == 0 and memory.size % PAGE == 0
        ]  # fmt: skip

    @property
    def migratable(self) -> bool:
        """See `Downstream.migratable`."""
        return self.function.migratable

    def suspend(self) -> None:
        """See `Downstream.suspend`."""
        self.guarded("suspension", self.function.on_suspend)
        self._suspended = True
        self._follow_command()

    def resume(self) -> None:
        """See `Downstream.resume`."""
        self._suspended = False
        self._follow_command()
        self.guarded("resumption", self.function.on_resume)

    def save_state(self) -> bytes:
        """See `Downstream.save_state`."""
        return state.save(self.function)

    def load_state(self, data: bytes) -> None:
        """See `Downstream.load_state`."""
        state.load(self.function, data)
        for capability in self.function.config.capabilities:
            if isinstance(capability, PowerManagement):
                self._power = PowerState(capability.pmcsr.power_state)
        self._follow_command()

    # How it is done.

    def answers(self, bar: int) -> bool:
        """Whether the driver has enabled memory accesses, and the function is awake."""
        return self._readers[bar] is not _no_read

    def guarded(self, doing: str, call: Callable[..., object], *args: object) -> None:
        """Call the card's code; an exception is reported and goes no further."""
        try:
            call(*args)
        except Exception as error:
            self.report(doing, error)

    def report(self, doing: str, error: BaseException) -> None:
        """Log an exception of the card's code with its traceback, and keep it."""
        self.errors.append(HandlerError(doing, error))
        self.error_count += 1
        log.error(
            "%s raised %s during a %s",
            type(self.function).__name__, type(error).__name__, doing, exc_info=error,
        )  # fmt: skip

    def _place(self, bar: int, offset: int) -> str:
        name = self._files[bar].name_at(offset) if bar in self._files else "no such BAR"
        return f"BAR {bar} + {offset:#x}" + (f" ({name})" if name else "")

    def _memory(self, bar: int, offset: int, length: int) -> memoryview | None:
        """The plain memory that an access lies in as a whole, if the function answers."""
        if not self.answers(bar):
            return None
        for memory in self._plain(bar):
            start = offset - memory.offset
            if 0 <= start and start + length <= memory.size:
                return memory.view[start : start + length]
        return None

    def _plain(self, bar: int) -> list[Memory]:
        return [m for m in self.function.bars[bar].memories if not isinstance(m, Shadow)]

    def _accesses(self, bar: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """What a block access is made of, as `(offset, size)`: memory as far as it goes, naturally
        aligned accesses where registers are, and nothing where nothing is."""
        memories = {memory.offset for memory in self._plain(bar)}
        end = offset + length
        for start, stop in self._files[bar].occupied:
            if start in memories:
                offset = max(offset, start)
                if offset < min(stop, end):
                    yield offset, min(stop, end) - offset
                    offset = min(stop, end)
                continue
            offset = max(offset, start & -BLOCK_ACCESS)
            while offset < min(stop, end):
                size = BLOCK_ACCESS
                while offset % size or offset + size > end:
                    size //= 2
                yield offset, size
                offset += size

    def _follow_command(self) -> None:
        """Answer memory accesses and allow DMA as the command register and power state say."""
        command = self.function.config.header.command
        awake = self._power is PowerState.D0 and not self._suspended
        self.function.dma.enable(awake and bool(command.bus_master))
        enabled = awake and bool(command.memory_space)
        for number in range(BAR_COUNT):
            file = self._files.get(number)
            answers = enabled and file is not None
            self._readers[number] = file.read if answers and file else _no_read
            self._writers[number] = file.write if answers and file else _no_write
        self.function.interrupts.set_awake(awake)

    def _command_written(self, _value: int) -> None:
        self._follow_command()

    def _pmcsr_written(self, capability: PowerManagement, _value: int) -> None:
        before, self._power = self._power, PowerState(capability.pmcsr.power_state)
        if before is self._power:
            return
        if before is PowerState.D3_HOT and not capability.no_soft_reset:
            self.reset(ResetKind.FLR)
        self._follow_command()
        self.guarded("change of power state", self.function.on_power_state, self._power)

    def _device_control_written(self, value: int) -> None:
        if value & PciExpress.INITIATE_FLR and self.function.supports_flr:
            self.reset(ResetKind.FLR)


def _no_read(_offset: int, size: int) -> int:
    return all_ones(size)


def _no_write(_offset: int, _size: int, _value: int) -> None:
    """Writes that nobody claims are dropped."""


def bars_of(function: type[Function]) -> dict[int, type[Bar]]:
    """The BAR classes that a function's class declares, by their number; None takes away an
    inherited one.

    Raises:
        DeclarationError: a name of a BAR is something else, or a BAR has another name.
    """
    found: dict[int, type[Bar]] = {}
    for name in dir(function):
        declared = getattr(function, name, None)
        bar = declared if isinstance(declared, type) and issubclass(declared, Bar) else None
        if name in BAR_NAMES and bar is not None:
            if not hasattr(bar, "layout"):
                raise DeclarationError(
                    f"{name} of {function.__name__} has no size: declare it as "
                    f"class {name}(Bar, size=4096)"
                )
            found[BAR_NAMES.index(name)] = bar
        elif hasattr(bar, "layout") or (name in BAR_NAMES and declared is not None):
            raise DeclarationError(
                f"{name} of {function.__name__} is not a BAR: BARs are nested classes named bar0 "
                "to bar5, such as class bar0(Bar, size=4096)"
            )
    return found
