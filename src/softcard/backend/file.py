"""A block store in a file."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from softcard.backend.store import Buffer
from softcard.errors import UsageError

# <linux/falloc.h>; the os module offers posix_fallocate only, which punches no holes.
FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS)

IOV_MAX = os.sysconf("SC_IOV_MAX")
ZEROES = bytes(1 << 20)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class FileStore:
    """Bytes in a file, which is locked against other processes while the store is open.

    The file is sparse: what was never written takes no room, and what is discarded gives its room
    back. What was written is there after the process was killed; what was flushed, after a loss of
    power. A file that is made shorter behind the store's back gives `OSError`, and nothing worse.

    Args:
        path: the file; it is made where there is none.
        size: bytes; None for the size that the file has. An existing file may be longer.
        block_size: what the size must be a multiple of.
        read_only: open an existing file for reading only; writing raises `OSError`.

    Raises:
        UsageError: the file cannot be made, opened or locked, or has the wrong size. It is then
            left as it was.
    """

    slow = True
    view = None

    def __init__(
        self, path: Path, size: int | None, *, block_size: int = 1, read_only: bool = False
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._file: BinaryIO | None = None
        self._fd = -1
        made = not path.exists()
        if made and size is None:
            raise UsageError(f"{path} does not exist: give a size to make it, or another file")
        self._open(os.O_CREAT)
        try:
            self.size = self._fit(size, block_size)
        except BaseException:
            self.close()
            if made:
                path.unlink(missing_ok=True)
            raise

    def open(self) -> None:
        """Open and lock the file again, which must still be there.

        Raises:
            UsageError: as when the store was made.
        """
        if self._file is None:
            self._open(0)

    def _open(self, create: int) -> None:
        path = self.path
        try:
            flags = os.O_RDONLY if self.read_only else os.O_RDWR | create
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UsageError(f"cannot open {path}: {_why(error, path)}") from None
        # The file object closes the descriptor when the store is forgotten.
        self._file = os.fdopen(fd, "rb", buffering=0)
        self._fd = fd
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{path} is not a regular file: choose another")
            fcntl.flock(fd, (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UsageError(
                f"{path} is in use by another card: unplug that one or end its process, or choose "
                "another file"
            ) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, which unlocks it."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._fd = -1

    def _fit(self, size: int | None, block_size: int) -> int:
        """The store's size, after making the file that long if it is new."""
        path, length = self.path, os.fstat(self._fd).st_size
        size = length if size is None else int(size)
        if size % block_size or not size:
            raise UsageError(
                f"{path} would hold {size} bytes, which is not a multiple of the block size "
                f"{block_size}: it may be truncated; give another size, or another file"
            )
        if length == 0 and not self.read_only:
            try:
                os.ftruncate(self._fd, size)
                # A file system that is full to the last byte is better found now than by a guest.
                os.pwrite(self._fd, b"\0", size - 1)
            except (OSError, OverflowError) as error:
                os.ftruncate(self._fd, 0)
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise UsageError(
                    f"cannot make {path} with {size} bytes: {why}; choose a smaller size, or a "
                    "folder on another disk"
                ) from None
        elif length < size:
            raise UsageError(
                f"{path} has {length} bytes, fewer than the {size} asked for: it may be truncated; "
                "give its own size or none, or another file"
            )
        return size

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See `BlockStore.read_into`."""
        wanted = sum(map(len, buffers))
        if len(buffers) <= IOV_MAX and os.preadv(self._fd, buffers, offset) == wanted:
            return
        for buffer in buffers:
            while buffer:
                done = os.preadv(self._fd, [buffer], offset)
                if not done:
                    raise OSError(errno.EIO, f"{self.path} ends at {offset}: it was truncated")
                buffer = buffer[done:]
                offset += done

    def write_from(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `BlockStore.write_from`."""
        wanted = sum(map(len, buffers))
        if len(buffers) <= IOV_MAX and os.pwritev(self._fd, buffers, offset) == wanted:
            return
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                done = os.pwritev(self._fd, [rest], offset)
                if not done:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest = rest[done:]
                offset += done

    def flush(self) -> None:
        """See `BlockStore.flush`."""
        if not self.read_only:
            os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """See `BlockStore.discard`: a hole, or zeroes where the file system has no holes."""
        if not self._fallocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length):
            self._write_zeroes(offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """See `BlockStore.write_zeroes`."""
        if not self._fallocate(FALLOC_ZERO_RANGE, offset, length):
            self._write_zeroes(offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Whether the file system can do it."""
        while length and _libc.fallocate(self._fd, mode, offset, length):
            number = ctypes.get_errno()
            if number in UNSUPPORTED:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number), str(self.path))
        return True

    def _write_zeroes(self, offset: int, length: int) -> None:
        while length:
            piece = min(length, len(ZEROES))
            self.write_from(offset, [memoryview(ZEROES)[:piece]])
            offset += piece
            length -= piece


def _why(error: OSError, path: Path) -> str:
    """A sentence on why a file cannot be opened, and what to do."""
    if error.errno == errno.ENOENT and path.parent.is_dir():
        return "it is not there; restore it, or choose another file"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no folder {path.parent}; make it first, or choose another file"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{error.strerror}; make it writable, or give the card the option read_only"
    if error.errno == errno.EISDIR:
        return "it is a folder; name a file in it"
    return f"{error.strerror}; choose another file"
