"""Firmware Image Download and Firmware Commit (NVMe 1.4, sections 5.11 and 5.12).

There is one slot, and it is read-only: images are taken as the protocol wants, and none is valid.
"""

from __future__ import annotations

from softcard.cards.nvme.command import AdminOpcode, Command, Handler
from softcard.cards.nvme.memory import HostMemory
from softcard.cards.nvme.registers import PAGE_SIZE_MIN
from softcard.cards.nvme.status import CommandError, Status

MAX_PIECES = 4096
ONLY_SLOT, CHOOSE_SLOT = 1, 0
REPLACE, REPLACE_AND_ACTIVATE, ACTIVATE, ACTIVATE_NOW = range(4)


class Firmware:
    """The download in progress.

    Args:
        memory: where the image comes from.
        max_transfer: bytes that one command may move.
    """

    def __init__(self, memory: HostMemory, max_transfer: int) -> None:
        self.handlers: dict[int, Handler] = {
            AdminOpcode.FIRMWARE_DOWNLOAD: self._download,
            AdminOpcode.FIRMWARE_COMMIT: self._commit,
        }
        self._memory = memory
        self._max_transfer = max_transfer
        self._pieces: list[tuple[int, int]] = []

    def reset(self) -> None:
        """The controller was reset: a download begins anew."""
        self._pieces.clear()

    def _download(self, command: Command) -> int:
        length, start = (command.dw10 + 1) * 4, command.dw11 * 4
        end = start + length
        if (
            length > self._max_transfer
            or (start | length) % PAGE_SIZE_MIN
            or len(self._pieces) >= MAX_PIECES
        ):
            raise CommandError(Status.INVALID_FIELD)
        if any(start < e and s < end for s, e in self._pieces):
            raise CommandError(Status.OVERLAPPING_RANGE)
        self._memory.read(command.prp1, command.prp2, length)
        self._pieces.append((start, end))
        return 0

    def _commit(self, command: Command) -> int:
        slot, action = command.dw10 & 0x7, command.dw10 >> 3 & 0x7
        if action > ACTIVATE_NOW:
            raise CommandError(Status.INVALID_FIELD)
        if slot not in (CHOOSE_SLOT, ONLY_SLOT):
            raise CommandError(Status.INVALID_FIRMWARE_SLOT)
        if action in (REPLACE, REPLACE_AND_ACTIVATE):
            self._pieces.clear()
            raise CommandError(
                Status.INVALID_FIRMWARE_SLOT if slot == ONLY_SLOT else Status.INVALID_FIRMWARE_IMAGE
            )
        # What is in the slot runs already.
        return 0
