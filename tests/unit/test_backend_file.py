from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softcard.backend.file import FileStore
from softcard.errors import UsageError

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


@pytest.fixture
def store(path: Path) -> Iterator[FileStore]:
    store = FileStore(path, 4 * MIB)
    yield store
    store.close()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 1 MiB: a stand-in for a full disk that needs no disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def read(store: FileStore, offset: int, length: int) -> bytes:
    data = bytearray(length)
    store.read_into(offset, [memoryview(data)])
    return bytes(data)


def blocks_of(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_new_file_has_the_size_asked_for_and_takes_no_room(store: FileStore, path: Path) -> None:
    assert path.stat().st_size == 4 * MIB
    assert blocks_of(path) < 64 << 10
    assert read(store, 0, 4096) == bytes(4096)


def test_it_holds_what_was_written(store: FileStore, path: Path) -> None:
    store.write_from(1000, [b"abc", memoryview(b"defg")])
    parts = [memoryview(bytearray(4)), memoryview(bytearray(5))]
    store.read_into(999, parts)
    assert b"".join(parts) == b"\0abcdefg\0"
    assert path.read_bytes()[999:1008] == b"\0abcdefg\0"


def test_more_buffers_than_one_system_call_takes(store: FileStore) -> None:
    data = os.urandom(3000)
    store.write_from(5, [data[i : i + 1] for i in range(3000)])
    parts = [memoryview(bytearray(1)) for _ in range(3000)]
    store.read_into(5, parts)
    assert b"".join(parts) == data


def test_data_are_there_when_it_is_opened_again(path: Path) -> None:
    first = FileStore(path, MIB)
    first.write_from(0, [b"kept"])
    first.close()
    second = FileStore(path, None)
    assert second.size == MIB
    assert read(second, 0, 4) == b"kept"
    second.close()


def test_what_was_written_outlives_a_killed_process(path: Path) -> None:
    script = (
        "import os, sys, pathlib; from softcard.backend.file import FileStore;"
        f"store = FileStore(pathlib.Path(sys.argv[1]), {MIB});"
        "store.write_from(0, [b'kept']); store.flush(); os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert process.returncode == -9
    store = FileStore(path, None)
    assert read(store, 0, 4) == b"kept"
    store.close()


@pytest.mark.parametrize("offset", [0, 1, 4096])
@pytest.mark.parametrize("length", [0, 1, 4096, MIB + 1])
@pytest.mark.parametrize("how", ["discard", "write_zeroes"])
def test_cleared_bytes_read_as_zero_and_no_others(
    store: FileStore, offset: int, length: int, how: str
) -> None:
    store.write_from(0, [b"x" * 2 * MIB])
    getattr(store, how)(offset, length)
    expected = bytearray(b"x" * 2 * MIB)
    expected[offset : offset + length] = bytes(length)
    assert read(store, 0, 2 * MIB) == expected


def test_discarding_punches_holes(store: FileStore, path: Path) -> None:
    store.write_from(0, [b"x" * 4 * MIB])
    store.flush()
    full = blocks_of(path)
    store.discard(0, 4 * MIB)
    assert full - blocks_of(path) >= 3 * MIB
    assert path.stat().st_size == 4 * MIB


@pytest.mark.parametrize("how", ["discard", "write_zeroes"])
def test_a_file_system_without_holes_gets_zeroes(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store.write_from(0, [b"x" * 3 * MIB])
    monkeypatch.setattr(FileStore, "_fallocate", lambda *args: False)
    getattr(store, how)(10, 2 * MIB)
    assert read(store, 0, 3 * MIB) == b"x" * 10 + bytes(2 * MIB) + b"x" * (MIB - 10)


def test_a_file_in_use_is_refused_in_one_sentence(store: FileStore, path: Path) -> None:
    store.write_from(0, [b"kept"])
    with pytest.raises(UsageError, match="in use") as raised:
        FileStore(path, 8 * MIB)
    assert "\n" not in str(raised.value)
    assert read(store, 0, 4) == b"kept"
    assert path.stat().st_size == 4 * MIB


def test_a_second_process_on_the_file_is_refused(store: FileStore, path: Path) -> None:
    script = (
        "import sys, pathlib; from softcard.backend.file import FileStore;"
        "FileStore(pathlib.Path(sys.argv[1]), None)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=False, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "UsageError" in process.stderr
    assert "in use" in process.stderr


def test_a_closed_file_is_free_and_can_be_opened_again(store: FileStore, path: Path) -> None:
    store.write_from(0, [b"kept"])
    store.close()
    other = FileStore(path, None)
    with pytest.raises(UsageError, match="in use"):
        store.open()
    other.close()
    store.open()
    assert read(store, 0, 4) == b"kept"


def test_a_file_that_is_gone_is_not_made_again(store: FileStore, path: Path) -> None:
    store.close()
    path.unlink()
    with pytest.raises(UsageError, match="not there"):
        store.open()
    assert not path.exists()


def test_a_forgotten_store_frees_its_file(path: Path) -> None:
    FileStore(path, MIB)
    FileStore(path, MIB).close()


def test_a_file_that_shrinks_is_an_error_not_a_signal(store: FileStore, path: Path) -> None:
    store.write_from(0, [b"x" * 4 * MIB])
    os.truncate(path, MIB)
    with pytest.raises(OSError, match="truncated"):
        read(store, MIB - 1, 2)
    assert read(store, MIB - 1, 1) == b"x"


def test_a_full_disk_is_an_error_of_the_write(path: Path, small_files: None) -> None:
    store = FileStore(path, MIB)
    store.size = 2 * MIB
    with pytest.raises(OSError) as raised:
        store.write_from(MIB - 2, [b"abcd"])
    assert raised.value.errno in (errno.EFBIG, errno.ENOSPC)
    store.close()


def test_a_full_disk_at_creation_is_a_usage_error_and_leaves_nothing(
    path: Path, small_files: None
) -> None:
    with pytest.raises(UsageError, match="cannot make"):
        FileStore(path, 2 * MIB)
    assert not path.exists()


def test_a_truncated_file_is_a_usage_error_and_stays_as_it_is(path: Path) -> None:
    path.write_bytes(b"x" * 1000)
    with pytest.raises(UsageError, match="fewer than"):
        FileStore(path, MIB)
    with pytest.raises(UsageError, match="not a multiple"):
        FileStore(path, None, block_size=512)
    assert path.read_bytes() == b"x" * 1000


def test_a_longer_file_keeps_its_length(path: Path) -> None:
    path.write_bytes(b"x" * 2 * MIB)
    store = FileStore(path, MIB)
    assert store.size == MIB
    store.close()
    assert path.stat().st_size == 2 * MIB


def test_a_new_file_needs_a_size(path: Path) -> None:
    with pytest.raises(UsageError, match="give a size"):
        FileStore(path, None)
    assert not path.exists()


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        FileStore(tmp_path / "missing" / "disk.img", MIB)


@pytest.mark.parametrize("target", ["folder", "device"])
def test_what_is_no_file_is_a_usage_error(tmp_path: Path, target: str) -> None:
    path = tmp_path if target == "folder" else Path("/dev/null")
    with pytest.raises(UsageError, match=r"folder|not a regular file"):
        FileStore(path, MIB)


def test_a_file_without_write_permission_is_a_usage_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(bytes(MIB))

    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Permissions do not stop the superuser, who may be running this.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match="read_only"):
        FileStore(path, MIB)


def test_a_read_only_store_reads_and_does_not_write(path: Path) -> None:
    path.write_bytes(b"x" * 4096)
    path.chmod(0o444)
    store = FileStore(path, None, read_only=True)
    assert read(store, 4095, 1) == b"x"
    with pytest.raises(OSError):
        store.write_from(0, [b"y"])
    with pytest.raises(OSError):
        store.discard(0, 4096)
    store.flush()
    store.close()
    assert path.read_bytes() == b"x" * 4096


def test_two_may_read_one_file(path: Path) -> None:
    path.write_bytes(bytes(4096))
    first = FileStore(path, None, read_only=True)
    second = FileStore(path, None, read_only=True)
    with pytest.raises(UsageError, match="in use"):
        FileStore(path, None)
    first.close()
    second.close()
