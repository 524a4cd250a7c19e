"""What the SMART / health information log counts (NVMe 1.4, section 5.14.1.2)."""

from __future__ import annotations

import enum
import time

AMBIENT = 313
"""Kelvin."""
WARNING_TEMPERATURE = 343
CRITICAL_TEMPERATURE = 353
SPARE_THRESHOLD = 10


class CriticalWarning(enum.IntFlag):
    """Critical warning bits."""

    SPARE = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY = 1 << 2
    READ_ONLY = 1 << 3


class Health:
    """Counters and the temperature; they live as long as the card's object.

    Attributes:
        reads, writes: commands completed without error.
        units_read, units_written: their data, in units of 512 bytes.
        busy: seconds in which commands were processed.
        media_errors: data that could not be read.
        power_cycles, unsafe_shutdowns: times that power came on, and went without a shutdown
            notification before.
        over_threshold, under_threshold: what the host set, in kelvin.
        forced: warnings that the card's owner wants reported besides.
    """

    def __init__(self) -> None:
        self.reads = self.writes = 0
        self.units_read = self.units_written = 0
        self.busy = 0.0
        self.media_errors = 0
        self.power_cycles = self.unsafe_shutdowns = 0
        self.over_threshold = WARNING_TEMPERATURE
        self.under_threshold = 0
        self.forced = CriticalWarning(0)
        self._temperature = AMBIENT
        self._on_since: float | None = None
        self._on_before = 0.0
        self._hot_since = time.monotonic()
        self._hot_seconds = {WARNING_TEMPERATURE: 0.0, CRITICAL_TEMPERATURE: 0.0}

    def power_on(self) -> None:
        """Power has come."""
        self.power_off()
        self.power_cycles += 1
        self._on_since = time.monotonic()

    def power_off(self) -> None:
        """Power has gone."""
        self._note_heat()
        if self._on_since is not None:
            self._on_before += time.monotonic() - self._on_since
            self._on_since = None

    @property
    def powered(self) -> bool:
        """Whether power is on."""
        return self._on_since is not None

    @property
    def power_on_hours(self) -> int:
        """Whole hours with power."""
        seconds = self._on_before
        if self._on_since is not None:
            seconds += time.monotonic() - self._on_since
        return int(seconds // 3600)

    @property
    def temperature(self) -> int:
        """Composite temperature in kelvin."""
        return self._temperature

    @temperature.setter
    def temperature(self, kelvin: int) -> None:
        self._note_heat()
        self._temperature = kelvin

    def minutes_above(self, limit: int) -> int:
        """Whole minutes spent at or above one of the two limits, with power."""
        self._note_heat()
        return int(self._hot_seconds[limit] // 60)

    def _note_heat(self) -> None:
        now = time.monotonic()
        if self.powered:
            for limit in self._hot_seconds:
                # Figure 194: the warning time ends where the critical one begins.
                critical = (
                    limit == WARNING_TEMPERATURE and self._temperature >= CRITICAL_TEMPERATURE
                )
                if self._temperature >= limit and not critical:
                    self._hot_seconds[limit] += now - self._hot_since
        self._hot_since = now

    @property
    def warnings(self) -> CriticalWarning:
        """The critical warnings that hold now."""
        found = self.forced
        if not self.under_threshold < self._temperature < self.over_threshold:
            found |= CriticalWarning.TEMPERATURE
        return found
