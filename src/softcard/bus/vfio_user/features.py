"""DEVICE_FEATURE: migration and DMA logging, for functions that can be migrated."""

from __future__ import annotations

import errno
from collections.abc import Callable

from softcard.bus.vfio_user.dirty import PAGE, DirtyLog
from softcard.bus.vfio_user.migration import Migration
from softcard.model.link import Downstream
from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import Feature

GET, SET, PROBE = wire.FEATURE_GET, wire.FEATURE_SET, wire.FEATURE_PROBE
Handler = Callable[[bytes], bytes]


class Features:
    """Answers the requests of one client.

    Args:
        function: what may be migrated.
        log: what the function writes; None where it cannot be migrated.
    """

    def __init__(self, function: Downstream, log: DirtyLog | None) -> None:
        self._migration = Migration(function)
        self._log = log
        self._handlers: dict[tuple[int, int], Handler] = {}
        if log is not None:
            self._handlers = {
                (Feature.MIGRATION, GET): self._get_migration,
                (Feature.MIG_DEVICE_STATE, GET): self._get_state,
                (Feature.MIG_DEVICE_STATE, SET): self._set_state,
                (Feature.DMA_LOGGING_START, SET): self._start_logging,
                (Feature.DMA_LOGGING_STOP, SET): self._stop_logging,
                (Feature.DMA_LOGGING_REPORT, GET): self._report,
            }

    def reset(self) -> None:
        """The function was reset."""
        self._migration.reset()

    def request(self, payload: bytes, fds: list[int]) -> bytes:
        """DEVICE_FEATURE: get, set or probe; the reply's payload.

        Raises:
            OSError: there is no such feature (ENOTSUP), the request is malformed (EINVAL), or
                there is no room for the reply (ENOSPC).
        """
        room, flags = wire.FEATURE.unpack_from(payload)
        index, action = flags & wire.FEATURE_MASK, flags & (GET | SET)
        if flags & ~(wire.FEATURE_MASK | GET | SET | PROBE) or not flags & (GET | SET | PROBE):
            raise OSError(errno.EINVAL, f"DEVICE_FEATURE with flags {flags:#x}")
        if flags & PROBE:
            kinds = [kind for kind in (GET, SET) if action & kind]
            known = [kind for kind in (GET, SET) if (index, kind) in self._handlers]
            if not known or any(kind not in known for kind in kinds):
                raise OSError(errno.ENOTSUP, f"feature {index} is not offered")
            return payload
        handler = self._handlers.get((index, action))
        if handler is None:
            raise OSError(errno.ENOTSUP, f"feature {index} is not offered")
        data = handler(payload[wire.FEATURE.size :])
        size = wire.FEATURE.size + len(data)
        if action == GET and size > room:
            raise OSError(errno.ENOSPC, f"{size} bytes of feature {index} for {room}")
        return wire.FEATURE.pack(size, flags) + data

    def _get_migration(self, data: bytes) -> bytes:
        return wire.MIGRATION_STOP_COPY.to_bytes(8, "little")

    def _get_state(self, data: bytes) -> bytes:
        return wire.MIGRATION_STATE.pack(self._migration.state, -1)

    def _set_state(self, data: bytes) -> bytes:
        state, _ = wire.MIGRATION_STATE.unpack(data)
        self._migration.change(state)
        return data

    def _start_logging(self, data: bytes) -> bytes:
        assert self._log is not None
        _, count, _ = wire.LOGGING_START.unpack_from(data)
        ranges = data[wire.LOGGING_START.size :]
        if len(ranges) != count * wire.AREA.size:
            raise OSError(errno.EINVAL, f"{len(ranges)} bytes for {count} ranges")
        self._log.start(list(wire.AREA.iter_unpack(ranges)))
        return wire.LOGGING_START.pack(PAGE, count, 0) + ranges

    def _stop_logging(self, data: bytes) -> bytes:
        assert self._log is not None
        self._log.stop()
        return data

    def _report(self, data: bytes) -> bytes:
        assert self._log is not None
        address, length, page_size = wire.LOGGING_REPORT.unpack(data)
        if length > page_size * 8 * wire.DEFAULT_TRANSFER:
            raise OSError(errno.EINVAL, f"a report of {length} bytes by {page_size}")
        return data + self._log.report(address, length, page_size)

    # The saved state, as a stream of pieces.

    def read_data(self, payload: bytes, fds: list[int]) -> bytes:
        """MIG_DATA_READ.

        Raises:
            OSError: nothing is being saved, or the request is malformed.
        """
        room, size = wire.MIGRATION_DATA.unpack(payload)
        if size > wire.DEFAULT_TRANSFER or room < wire.MIGRATION_DATA.size + size:
            raise OSError(errno.EINVAL, f"{size} bytes of state with room for {room}")
        piece = self._migration.read(size)
        return wire.MIGRATION_DATA.pack(wire.MIGRATION_DATA.size + len(piece), len(piece)) + piece

    def write_data(self, payload: bytes, fds: list[int]) -> bytes:
        """MIG_DATA_WRITE.

        Raises:
            OSError: nothing is being loaded, or the request is malformed.
        """
        _, size = wire.MIGRATION_DATA.unpack_from(payload)
        data = payload[wire.MIGRATION_DATA.size :]
        if len(data) != size:
            raise OSError(errno.EINVAL, f"{len(data)} bytes of state, not {size}")
        self._migration.write(data)
        return b""
