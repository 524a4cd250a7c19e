"""PCI Power Management capability (PCI Express Base 6.0, section 7.5.2)."""

from __future__ import annotations

from collections.abc import Collection

from softcard.errors import DeclarationError
from softcard.pcie.capability import StandardCapability
from softcard.pcie.register import RO, W1C, Field, Register

D0, D1, D2, D3_HOT, D3_COLD = range(5)


class PowerManagementCapabilities(Register):
    """PMC (section 7.5.2.1)."""

    version = Field(2, 0, access=RO, reset=3)
    pme_clock = Field(3, access=RO)
    immediate_readiness_on_return_to_d0 = Field(4, access=RO)
    device_specific_initialization = Field(5, access=RO)
    aux_current = Field(8, 6, access=RO)
    d1_support = Field(9, access=RO)
    d2_support = Field(10, access=RO)
    pme_support = Field(15, 11, access=RO)


class PowerManagementControl(Register):
    """PMCSR (section 7.5.2.2).

    Attributes:
        supported: a bit for each power state that the function has.
    """

    power_state = Field(1, 0)
    no_soft_reset = Field(3, access=RO)
    pme_enable = Field(8)
    data_select = Field(12, 9, access=RO)
    data_scale = Field(14, 13, access=RO)
    pme_status = Field(15, access=W1C)

    supported = 1 << D0 | 1 << D3_HOT

    def write(self, value: int, mask: int = -1) -> None:
        """A driver's write; a power state that the function does not have changes nothing."""
        state = PowerManagementControl.power_state.mask
        if not self.supported >> (value & state) & 1:
            mask &= ~state
        super().write(value, mask)


class PowerManagement(StandardCapability):
    """Power states, and whether the function can ask for power with PME.

             31            16 15           8 7            0
            +----------------+--------------+--------------+
        00h | PMC            | next pointer | id (01h)     |
            +----------------+--------------+--------------+
        04h | data, reserved | PMCSR                       |
            +----------------+-----------------------------+

    Args:
        at: offset in configuration space.
        d1: the function has state D1.
        d2: the function has state D2.
        pme: the states that it can signal PME from, as numbers: 0 to 3 for D0 to D3hot, 4 for
            D3cold.
        no_soft_reset: a return from D3hot to D0 does not reset the function.
    """

    id = 0x01
    size = 8
    pmc = PowerManagementCapabilities(0x02, width=16)
    pmcsr = PowerManagementControl(0x04, width=16)

    def __init__(
        self,
        *,
        at: int | None = None,
        d1: bool = False,
        d2: bool = False,
        pme: Collection[int] = (),
        no_soft_reset: bool = True,
    ) -> None:
        super().__init__(at=at)
        self.d1 = d1
        self.d2 = d2
        self.pme = frozenset(pme)
        self.no_soft_reset = no_soft_reset
        has = {D0, D3_HOT, D3_COLD} | ({D1} if d1 else set()) | ({D2} if d2 else set())
        for state in self.pme:
            if state not in has:
                raise DeclarationError(
                    f"PME from power state {state}, which the function does not have: it has 0, "
                    "3 and 4, and 1 and 2 where d1 and d2 say so"
                )

    def setup(self) -> None:
        """Store which states there are."""
        self.pmc.d1_support = self.d1
        self.pmc.d2_support = self.d2
        self.pmc.pme_support = sum(1 << state for state in self.pme)
        self.pmcsr.no_soft_reset = self.no_soft_reset
        self.pmcsr.supported |= self.d1 << D1 | self.d2 << D2
        pme = PowerManagementControl.pme_enable.mask | PowerManagementControl.pme_status.mask
        if not self.pme:
            self.pmcsr.set_access(pme, RO)
        if D3_COLD in self.pme:
            self.pmcsr.sticky |= pme
