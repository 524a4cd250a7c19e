"""The compressions that kernels and their modules come in."""

from __future__ import annotations

import ctypes
import lzma
import zlib

GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
ELF = b"\x7fELF"
# What ZSTD_getFrameContentSize() returns where it cannot tell.
ZSTD_UNKNOWN = (1 << 64) - 2


class CompressionError(ValueError):
    """This cannot be unpacked here; says why."""


def unpack(data: bytes, size: int | None = None) -> bytes:
    """What was compressed; `data` itself where it is an ELF file.

    Args:
        data: the compressed file; what follows its end is left alone.
        size: bytes of what was compressed, for a file that does not tell.

    Raises:
        CompressionError: it is of a kind that cannot be unpacked here, or damaged.
    """
    try:
        if data.startswith(ELF):
            return data
        if data.startswith(GZIP):
            return zlib.decompressobj(zlib.MAX_WBITS + 16).decompress(data)
        if data.startswith(XZ):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)
        if data.startswith(ZSTD):
            return _unpack_zstd(data, size)
    except (zlib.error, EOFError, lzma.LZMAError) as error:
        raise CompressionError(f"it is damaged: {error}") from None
    raise CompressionError(f"it begins with {data[:4].hex()}, which is no compression known here")


def _unpack_zstd(data: bytes, size: int | None) -> bytes:
    # Python has a module for it from 3.14 on; the library itself is part of every Debian.
    try:
        zstd = ctypes.CDLL("libzstd.so.1")
    except OSError:
        raise CompressionError("libzstd.so.1 is missing") from None
    for function in (
        zstd.ZSTD_getFrameContentSize, zstd.ZSTD_findFrameCompressedSize, zstd.ZSTD_decompress
    ):  # fmt: skip
        function.restype = ctypes.c_uint64
    length = zstd.ZSTD_findFrameCompressedSize(data, ctypes.c_size_t(len(data)))
    if size is None:
        size = int(zstd.ZSTD_getFrameContentSize(data, ctypes.c_size_t(len(data))))
    if length > len(data):
        raise CompressionError("it is damaged")
    if size >= ZSTD_UNKNOWN:
        raise CompressionError("it does not tell how large it is")
    buffer = ctypes.create_string_buffer(size)
    done = zstd.ZSTD_decompress(buffer, ctypes.c_size_t(size), data, ctypes.c_size_t(length))
    if done != size:
        raise CompressionError("it is damaged")
    return buffer.raw
