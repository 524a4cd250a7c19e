"""One call for MSI-X, MSI and INTx: the card names a vector, the driver's choice decides."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence

from softcard.errors import DmaError, StateError
from softcard.model.link import Upstream
from softcard.pcie.capabilities import Msi, MsiX
from softcard.pcie.config import ConfigSpace
from softcard.pcie.register import Register

log = logging.getLogger("softcard.card")


class Interrupts:
    """The interrupt logic of one function (PCI Express Base 6.0, sections 6.1 and 7.7).

    MSI and MSI-X vectors are edges: each `signal` sends one message, or sets the pending bit while
    the vector is masked, bus mastering is off or the function sleeps, and the message goes out
    when that ends. INTx is a level: the line stays asserted while any signalled vector has not
    been released.

    A bus that keeps the messages itself masks them itself, too: it says which vectors it can
    deliver, and the others stay pending until it can.

    Attributes:
        vectors: how many there are.
        immediate: MSI-X vectors that such a bus delivers now, which is what is needed of them.
    """

    def __init__(self, config: ConfigSpace, msi: Msi | None, msix: MsiX | None) -> None:
        self._config = config
        self._msi = msi
        self._msix = msix
        self._upstream: Upstream | None = None
        self._bus_owns_msix = False
        self._wired: frozenset[int] = frozenset()
        self.immediate: frozenset[int] = frozenset()
        self._unwired_pending: set[int] = set()
        self._lock = threading.RLock()
        self._levels: set[int] = set()
        self._line = False
        self._awake = True
        self._msi_pending = 0
        self.vectors = msix.vectors if msix else msi.vectors if msi else 1
        controls: list[Register | None] = [msi.control, msi.mask] if msi is not None else []
        controls += [msix.control] if msix is not None else []
        for register in controls:
            if register is not None:
                config.on_write(register, lambda _value: self.update())
        if msix is not None:
            msix.on_unmask = lambda _vector: self.update()

    def attach(self, upstream: Upstream | None) -> None:
        """Deliver to this bus from now on."""
        with self._lock:
            self._upstream = upstream
            self._bus_owns_msix = upstream is not None and upstream.features.bus_owns_msix
            self._wired = frozenset()
            self._follow()

    def _follow(self) -> None:
        """What `immediate` depends on may have changed."""
        self.immediate = self._wired if self._awake and self._wired_by_msix else frozenset()

    @property
    def _wired_by_msix(self) -> bool:
        return self._msix is not None and (self._msi is None or not self._msi.control.enable)

    def signal(self, vector: int) -> None:
        """Interrupt the driver; see `Function.interrupt`."""
        if not 0 <= vector < self.vectors:
            raise ValueError(f"vector {vector} does not exist: the card has {self.vectors}")
        with self._lock:
            upstream = self._upstream
            if upstream is None:
                return
            if vector in self.immediate:
                upstream.vector(vector)
                return
            msix, msi = self._msix, self._msi
            if self._bus_owns_msix and self.uses_messages:
                self._signal_wired(upstream, vector)
            elif msix is not None and msix.control.enable:
                if msix.masked(vector) or not self._may_send:
                    msix.set_pending(vector, True)
                else:
                    _send(upstream, *msix.message(vector))
            elif msi is not None and msi.control.enable:
                self._signal_msi(msi, upstream, vector % msi.allocated)
            else:
                self._levels.add(vector)
                self._update_line()

    @property
    def uses_messages(self) -> bool:
        """Whether the driver uses MSI-X or MSI, and not INTx."""
        return (
            bool(self._wired)
            or (self._msix is not None and bool(self._msix.control.enable))
            or (self._msi is not None and bool(self._msi.control.enable))
        )

    def _signal_wired(self, upstream: Upstream, vector: int) -> None:
        by_msix = self._wired_by_msix
        if not by_msix and self._wired:
            # A driver may have been given fewer MSI messages than it was offered.
            vector %= len(self._wired)
        if vector in self._wired and self._awake:
            upstream.vector(vector)
        else:
            self._unwired_pending.add(vector)
            if by_msix and self._msix is not None:
                self._msix.set_pending(vector, True)

    def set_wired(self, vectors: Collection[int]) -> None:
        """The bus delivers these vectors from now on, and no others."""
        with self._lock:
            self._wired = frozenset(vectors)
            self.update()

    def _deliver_wired(self, upstream: Upstream) -> None:
        for vector in sorted(self._unwired_pending & self._wired) if self._awake else ():
            self._unwired_pending.discard(vector)
            if self._msix is not None:
                self._msix.set_pending(vector, False)
            upstream.vector(vector)

    def _signal_msi(self, msi: Msi, upstream: Upstream, vector: int) -> None:
        if self._msi_held(msi, vector):
            self._set_msi_pending(msi, self._msi_pending | 1 << vector)
        else:
            _send(upstream, *msi.message(vector))

    def _msi_held(self, msi: Msi, vector: int) -> bool:
        masked = msi.mask is not None and msi.mask.value >> vector & 1
        return bool(masked) or not self._may_send

    @property
    def _may_send(self) -> bool:
        return self._awake and self._config.header.command.bus_master != 0

    def _set_msi_pending(self, msi: Msi, pending: int) -> None:
        self._msi_pending = pending
        if msi.pending is not None:
            msi.pending.value = pending

    def release(self, vector: int) -> None:
        """The cause of a signalled vector is gone; see `Function.deassert`."""
        with self._lock:
            if vector in self._levels:
                self._levels.discard(vector)
                self._update_line()

    def update(self) -> None:
        """The driver changed an enable or a mask: send what that sets free."""
        with self._lock:
            self._follow()
            upstream = self._upstream
            if upstream is None:
                return
            msix, msi = self._msix, self._msi
            if self._bus_owns_msix:
                self._deliver_wired(upstream)
            elif msix is not None and msix.control.enable:
                for vector in msix.pending_unmasked() if self._may_send else ():
                    msix.set_pending(vector, False)
                    _send(upstream, *msix.message(vector))
            elif msi is not None and msi.control.enable and self._msi_pending:
                for vector in range(msi.allocated):
                    if self._msi_pending >> vector & 1 and not self._msi_held(msi, vector):
                        self._set_msi_pending(msi, self._msi_pending & ~(1 << vector))
                        _send(upstream, *msi.message(vector))
            self._update_line()

    def _update_line(self) -> None:
        header = self._config.header
        wanted = bool(self._levels) and not self.uses_messages and bool(header.interrupt_pin.value)
        header.status.interrupt_status = wanted
        line = wanted and self._awake and not header.command.intx_disable
        if line != self._line and self._upstream is not None:
            self._line = line
            self._upstream.intx(line)

    def set_awake(self, awake: bool) -> None:
        """Outside D0 a function sends no requests and asserts no line (section 5.3.1)."""
        with self._lock:
            self._awake = awake
            self.update()

    def save(self) -> dict[str, list[int]]:
        """What is signalled and pending, and the MSI-X table, for `load`."""
        with self._lock:
            msix = self._msix
            return {
                "levels": sorted(self._levels),
                "pending": sorted(self._unwired_pending),
                "msi": [self._msi_pending],
                "table": [] if msix is None else list(msix.table_region.words),
                "flags": [] if msix is None else list(msix.pba_region.flags),
            }

    def check(self, state: Mapping[str, Sequence[int]]) -> None:
        """Raise `StateError` unless `load` can take this."""
        shape = self.save()
        limits = {"levels": self.vectors, "pending": self.vectors, "flags": 2}
        for name, own in shape.items():
            values = state.get(name)
            if (
                not isinstance(values, list)
                or (name in ("msi", "table", "flags") and len(values) != len(own))
                or not all(type(v) is int and 0 <= v < limits.get(name, 1 << 32) for v in values)
            ):
                raise StateError(f"the saved interrupts are not those of this card: {name}")

    def load(self, state: Mapping[str, Sequence[int]]) -> None:
        """Take what another function's `save` returned, and `check` allows."""
        with self._lock:
            self._levels = set(state["levels"])
            self._unwired_pending = set(state["pending"])
            if self._msi is not None:
                self._set_msi_pending(self._msi, state["msi"][0])
            if self._msix is not None:
                for index, word in enumerate(state["table"]):
                    self._msix.table_region.words[index] = word
                self._msix.pba_region.flags[:] = bytes(state["flags"])
            self.update()

    def reset(self) -> None:
        """Nothing signalled, nothing pending, the line released."""
        with self._lock:
            self._levels.clear()
            self._unwired_pending.clear()
            self._msi_pending = 0
            self._follow()
            if self._msix is not None:
                self._msix.reset_table()
            self._update_line()


def _send(upstream: Upstream, address: int, data: int) -> None:
    """Send a message, which is a posted write: where the driver's side has given an address that
    leads nowhere the bus knows of the fault, and the function never does."""
    try:
        upstream.message(address, data)
    except DmaError as error:
        log.info("an interrupt message is lost: %s", error)
