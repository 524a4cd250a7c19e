"""The migration state machine of <linux/vfio.h>, without pre-copy.

            +---------+
            | RUNNING |
            +----+----+
                 |
            +----+----+
      +-----+  STOP   +-----+
      |     +---------+     |
+-----+-----+         +-----+----+
| STOP_COPY |         | RESUMING |
+-----------+         +----------+
"""

from __future__ import annotations

import errno

from softcard.errors import StateError
from softcard.model.link import Downstream
from softcard.wire.vfio_user import MigrationState

# A state that is being loaded may be this long.
MAX_STATE = 256 << 20


class Migration:
    """Where one function is in its migration.

    Attributes:
        state: one of the states above, or ERROR, which only a reset ends.
    """

    def __init__(self, function: Downstream) -> None:
        self.state = MigrationState.RUNNING
        self._function = function
        self._data = bytearray()

    def reset(self) -> None:
        """The function was reset: it runs."""
        self.state = MigrationState.RUNNING
        self._data.clear()

    def change(self, state: int) -> None:
        """Go to another state, by way of STOP.

        Raises:
            OSError: there is no such state or no way there (EINVAL), or the data that was written
                is no state of this card (EIO).
        """
        if state not in (
            MigrationState.STOP, MigrationState.RUNNING,
            MigrationState.STOP_COPY, MigrationState.RESUMING,
        ) or self.state is MigrationState.ERROR:  # fmt: skip
            raise OSError(errno.EINVAL, f"no way from state {self.state.name} to {state}")
        if state != self.state:
            self._leave()
            self._enter(MigrationState(state))

    def _leave(self) -> None:
        before, data = self.state, bytes(self._data)
        self._data.clear()
        if before is MigrationState.RUNNING:
            self._function.suspend()
        elif before is MigrationState.RESUMING:
            try:
                self._function.load_state(data)
            except StateError as error:
                self.state = MigrationState.ERROR
                raise OSError(errno.EIO, str(error)) from None
        self.state = MigrationState.STOP

    def _enter(self, state: MigrationState) -> None:
        if state is MigrationState.RUNNING:
            self._function.resume()
        elif state is MigrationState.STOP_COPY:
            self._data[:] = self._function.save_state()
        self.state = state

    def read(self, size: int) -> bytes:
        """The next piece of the saved state; less than `size` bytes are the last.

        Raises:
            OSError: nothing is being saved (EINVAL).
        """
        if self.state is not MigrationState.STOP_COPY:
            raise OSError(errno.EINVAL, f"nothing to read in state {self.state.name}")
        piece = bytes(self._data[:size])
        del self._data[:size]
        return piece

    def write(self, data: bytes) -> None:
        """A piece of a state that is to be loaded.

        Raises:
            OSError: nothing is being loaded (EINVAL), or it is too much (EFBIG).
        """
        if self.state is not MigrationState.RESUMING:
            raise OSError(errno.EINVAL, f"nothing to write in state {self.state.name}")
        if len(self._data) + len(data) > MAX_STATE:
            raise OSError(errno.EFBIG, f"a state of more than {MAX_STATE} bytes")
        self._data += data
