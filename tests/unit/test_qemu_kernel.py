"""Stock kernels, their modules, and the initramfs that is made for them; no QEMU."""

from __future__ import annotations

import ctypes
import gzip
import lzma
import os
import struct
from pathlib import Path

import pytest

from softcard import UsageError
from softcard.guest.qemu import QemuError, stock_kernel
from softcard.guest.qemu.compression import CompressionError, unpack
from softcard.guest.qemu.headers import headers
from softcard.guest.qemu.initramfs import MODULES, failed_step, initramfs
from softcard.guest.qemu.kernel import (
    find_kernel_of,
    kernels_folder,
    need_kernel,
    release_of,
    series_folder,
    unpacked,
    unpacked_file,
)
from softcard.guest.qemu.modules import module_images

ELF = b"\x7fELF" + bytes(range(200))
RELEASE = "6.12.1+test-amd64"


def zstd(data: bytes) -> bytes:
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_compress.restype = ctypes.c_size_t
    room = ctypes.create_string_buffer(len(data) + 1000)
    length = library.ZSTD_compress(
        room, ctypes.c_size_t(len(room)), data, ctypes.c_size_t(len(data)), 3
    )
    return room.raw[:length]


def elf_kernel(*, entry_note: bool) -> bytes:
    """The least that a loader of uncompressed kernels looks at."""
    note = struct.pack("<III4sQ", 4, 8, 18 if entry_note else 17, b"Xen\0", 0x1000000)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return header + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4) + note


def bz_image(payload: bytes, size: int, release: str = RELEASE) -> bytes:
    """A kernel image as far as it is looked at."""
    image = bytearray(0x600)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    text = f"{release} (somebody) #1\0".encode()
    image[0x300 : 0x300 + len(text)] = text
    packed = payload + struct.pack("<I", size)
    struct.pack_into("<II", image, 0x248, 0x200, len(packed))
    return bytes(image) + packed


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "boot" / "vmlinuz"
    path.parent.mkdir()
    path.write_bytes(bz_image(lzma.compress(ELF), len(ELF)))
    return path


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress, lzma.compress, zstd])
def test_every_compression_is_unpacked(pack: object) -> None:
    assert unpack(pack(ELF)) == ELF  # type: ignore[operator]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd])
def test_what_follows_is_left_alone(pack: object) -> None:
    assert unpack(pack(ELF) + b"more", len(ELF)) == ELF  # type: ignore[operator]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd])
def test_damaged_data_are_an_error(pack: object) -> None:
    data = bytearray(pack(os.urandom(1000)))  # type: ignore[operator]
    data[8:20] = b"\xff" * 12
    with pytest.raises(CompressionError):
        unpack(bytes(data))
    with pytest.raises(CompressionError, match="no compression known"):
        unpack(b"nonsense")


def test_a_kernel_tells_its_release(image: Path) -> None:
    assert release_of(image) == RELEASE


def test_modules_are_found_beside_the_image(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/modules" / RELEASE
    folder.mkdir(parents=True)
    assert stock_kernel(image).modules is None
    (folder / "modules.dep").touch()
    assert stock_kernel(image).modules == folder


def test_modules_may_be_anywhere(image: Path, tmp_path: Path) -> None:
    (tmp_path / "modules.dep").touch()
    assert stock_kernel(image, tmp_path).modules == tmp_path
    with pytest.raises(UsageError, match=r"has no modules\.dep"):
        stock_kernel(image, tmp_path / "boot")


def test_a_file_that_is_no_kernel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"HdrS", bytes(10000)):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="is no Linux kernel"):
            stock_kernel(path)
    with pytest.raises(UsageError, match="cannot be read"):
        stock_kernel(tmp_path)


def test_only_an_image_that_can_boot_by_itself_is_unpacked(image: Path) -> None:
    for note in (True, False):
        elf = elf_kernel(entry_note=note)
        image.write_bytes(bz_image(gzip.compress(elf), len(elf)))
        assert unpacked(image) == (elf if note else None)
    image.write_bytes(bz_image(b"unknown", 7))
    assert unpacked(image) is None


def test_an_unpacked_image_is_what_boots(image: Path) -> None:
    assert stock_kernel(image).bootable == image
    unpacked_file(image).touch()
    assert stock_kernel(image).bootable == unpacked_file(image)


def test_kernels_of_series_are_apart_from_the_one_that_boots_when_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for folder, release in (
        (kernels_folder() / RELEASE, RELEASE),
        (series_folder("6.1"), "6.1.0-50-amd64"),
    ):
        (folder / "boot").mkdir(parents=True)
        image = bz_image(lzma.compress(ELF), len(ELF), release)
        (folder / "boot" / f"vmlinuz-{release}").write_bytes(image)

    def release_of_series(series: str) -> str | None:
        kernel = find_kernel_of(series)
        return kernel.release if kernel else None

    assert need_kernel().release == RELEASE
    assert release_of_series("6.12") == RELEASE
    assert release_of_series("6.1") == "6.1.0-50-amd64"
    assert release_of_series("7.2") is None


def test_a_kernel_whose_modules_name_its_headers_needs_no_others(
    image: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "usr/lib/modules" / RELEASE
    (folder / "build").mkdir(parents=True)
    (folder / "modules.dep").touch()
    assert headers(stock_kernel(image)) == folder / "build"


# Modules.


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "a-b.ko").write_bytes(b"\x7fELF a")
    (tmp_path / "c.ko.xz").write_bytes(lzma.compress(b"\x7fELF c"))
    (tmp_path / "d.ko.gz").write_bytes(gzip.compress(b"\x7fELF d"))
    (tmp_path / "modules.dep").write_text("a-b.ko: c.ko.xz d.ko.gz\nc.ko.xz: d.ko.gz\nd.ko.gz:\n")
    (tmp_path / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\n")
    return tmp_path


def test_a_module_comes_after_what_it_depends_on(modules: Path) -> None:
    expected = [b"\x7fELF d", b"\x7fELF c", b"\x7fELF a"]
    assert module_images(modules, ["a_b", "overlay", "c"]) == expected


def test_a_module_that_is_nowhere_is_named(modules: Path) -> None:
    with pytest.raises(QemuError, match="lack 9p, without which"):
        module_images(modules, ["9p"])


def test_modules_without_a_list_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(QemuError, match="run depmod"):
        module_images(tmp_path, MODULES)


# The initramfs.


def files_of(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of each file of a cpio archive."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n :][:8], 16) for n in range(13)]
        name = archive[at + 110 :][: fields[11] - 1].decode()
        start = at + 110 + fields[11] + (-(110 + fields[11]) % 4)
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[start : start + fields[6]])
        at = start + fields[6] + (-fields[6] % 4)


def test_the_archive_has_an_init_and_what_it_needs() -> None:
    files = files_of(initramfs([b"\x7fELF module" * 7]))
    assert {name: oct(mode) for name, (mode, _) in files.items()} == {
        "dev": "0o40755", "root": "0o40755", "dev/console": "0o20600", "init": "0o100755",
    }  # fmt: skip


def test_init_loads_the_modules_then_mounts_the_root() -> None:
    images = [b"\x7fELF first", b"\x7fELF second!"]
    _, program = files_of(initramfs(images))["init"]
    base, entry = 0x400000, struct.unpack_from("<Q", program, 24)[0]
    table = struct.unpack_from("<Q", program, entry - base + 2)[0] - base

    def text(address: int) -> bytes:
        return program[address - base :].partition(b"\0")[0]

    calls = []
    while struct.unpack_from("<q", program, table)[0] >= 0:
        calls.append(struct.unpack_from("<6q", program, table))
        table += 48
    assert [call[0] for call in calls] == [175, 175, 165, 80, 165, 161]
    loaded = [program[call[1] - base :][: call[2]] for call in calls[:2]]
    assert loaded == images
    mount = calls[2]
    assert [text(mount[n]) for n in (1, 2, 3)] == [b"root", b"/root", b"9p"]
    assert mount[4] & 1, "read-only"


def test_the_status_of_a_failed_init_is_told_in_words() -> None:
    assert "modules" in failed_step(2, 2)
    assert "9p" in failed_step(3, 2)
    assert "agent" in failed_step(7, 2)
