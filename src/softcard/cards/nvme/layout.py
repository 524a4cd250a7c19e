"""Data structures as the specification's tables give them: names, offsets and sizes."""

from __future__ import annotations

from collections.abc import Mapping

Value = int | str | bytes


class Layout:
    """A data structure of `size` bytes; what no field covers is reserved, and zero.

        HEADER = Layout(16, {"id": (0, 2), "name": (8, 8)})
        HEADER.pack(id=7, name="disk")

    Args:
        size: bytes.
        fields: offset and size of each field, in bytes.
    """

    def __init__(self, size: int, fields: Mapping[str, tuple[int, int]]) -> None:
        self.size = size
        self.fields = dict(fields)
        end = 0
        for name, (offset, length) in self.fields.items():
            if offset < end or offset + length > size:
                raise ValueError(f"field {name} at {offset} overlaps another, or the end")
            end = offset + length

    def pack(self, **values: Value) -> bytes:
        """The structure's bytes: integers little-endian, text padded with spaces, bytes padded
        with zeroes; fields left out are zero.

        Raises:
            KeyError: there is no such field.
            ValueError, OverflowError: a value does not fit.
        """
        data = bytearray(self.size)
        for name, value in values.items():
            offset, length = self.fields[name]
            raw = _encode(value, length)
            if len(raw) != length:
                raise ValueError(f"{value!r} does not fit the {length} bytes of field {name}")
            data[offset : offset + length] = raw
        return bytes(data)

    def get(self, data: bytes | memoryview, name: str) -> int:
        """An integer field of a packed structure."""
        offset, length = self.fields[name]
        return int.from_bytes(data[offset : offset + length], "little")


def _encode(value: Value, length: int) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(length, "little")
    if isinstance(value, str):
        return value.encode("ascii").ljust(length)
    return value.ljust(length, b"\0")
