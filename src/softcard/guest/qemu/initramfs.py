"""The initramfs of a guest: mounts this machine's root over 9p, and starts a program there.

Its only file is `/init`, and that is a list of system calls with a loop that makes them. A shell
and the programs that it would call take a second of their own where a processor is emulated.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

ROOT_TAG = "root"
"""The mount tag under which the root is looked for."""

MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
# Nothing is kept of what was read, so that what changes on this machine is seen in the guest.
MOUNT_OPTIONS = "trans=virtio,version=9p2000.L,cache=none,msize=512000"
MS_RDONLY, MS_MOVE = 1, 8192
SYS_CHDIR, SYS_CHROOT, SYS_MOUNT, SYS_INIT_MODULE = 80, 161, 165, 175

BASE = 0x400000
DIRECTORY, EXECUTABLE, CHARACTER_DEVICE = 0o40755, 0o100755, 0o20600
CONSOLE = (5, 1)

# Makes the system calls of the table at r12 until one fails or number -1 comes, then executes
# argv[1] with the arguments after it. A call that fails ends the process with its place in the
# table, counted from 1, as its status, which the kernel shows when it panics over that.
LOOP = bytes.fromhex(
    "4989e5"      # mov  r13, rsp            argc, argv[0], argv[1] ...
    "31db"        # xor  ebx, ebx
    "ffc3"        # next: inc ebx
    "498b0424"    # mov  rax, [r12]
    "85c0"        # test eax, eax
    "782b"        # js   run
    "498b7c2408"  # mov  rdi, [r12 + 8]
    "498b742410"  # mov  rsi, [r12 + 16]
    "498b542418"  # mov  rdx, [r12 + 24]
    "4d8b542420"  # mov  r10, [r12 + 32]
    "4d8b442428"  # mov  r8, [r12 + 40]
    "4983c430"    # add  r12, 48
    "0f05"        # syscall
    "4885c0"      # test rax, rax
    "79d2"        # jns  next
    "89df"        # fail: mov edi, ebx
    "6a3c"        # push 60                  exit
    "58"          # pop  rax
    "0f05"        # syscall
    "498b7d10"    # run: mov rdi, [r13 + 16]
    "498d7510"    # lea  rsi, [r13 + 16]
    "498b4500"    # mov  rax, [r13]
    "498d54c510"  # lea  rdx, [r13 + 8 * rax + 16]
    "6a3b"        # push 59                  execve
    "58"          # pop  rax
    "0f05"        # syscall
    "ebe1"        # jmp  fail
)  # fmt: skip
CALL = struct.Struct("<6q")
END = -1

Argument = int | bytes
"""A number, or what a pointer points to."""


def initramfs(modules: Sequence[bytes]) -> bytes:
    """An archive whose init loads `modules`, makes the root its own, and becomes its `argv[1]`."""
    calls: list[tuple[Argument, ...]] = [
        *((SYS_INIT_MODULE, image, len(image), b"\0") for image in modules),
        (SYS_MOUNT, _c(ROOT_TAG), _c("/root"), _c("9p"), MS_RDONLY, _c(MOUNT_OPTIONS)),
        (SYS_CHDIR, _c("/root")),
        (SYS_MOUNT, _c("."), _c("/"), 0, MS_MOVE, 0),
        (SYS_CHROOT, _c(".")),
    ]
    archive = bytearray()
    for name in ("dev", "root"):
        _add(archive, name, DIRECTORY)
    _add(archive, "dev/console", CHARACTER_DEVICE, device=CONSOLE)
    _add(archive, "init", EXECUTABLE, _program(calls))
    _add(archive, "TRAILER!!!", 0)
    return bytes(archive)


def failed_step(status: int, modules: int) -> str:
    """What init could not do when it has ended with `status`, having had that many modules."""
    if status <= modules:
        return "load one of its own modules"
    if status == modules + 1:
        return "mount this machine's root over 9p"
    return "start its agent"


def _c(text: str) -> bytes:
    return text.encode() + b"\0"


def _program(calls: Sequence[tuple[Argument, ...]]) -> bytes:
    """An ELF program that makes these calls."""
    header_size = 64 + 56
    table = header_size + len(b"\x49\xbc") + 8 + len(LOOP)
    code = b"\x49\xbc" + struct.pack("<Q", BASE + table) + LOOP  # mov r12, table
    end = table + CALL.size * len(calls) + 8
    rows, data = bytearray(), bytearray()
    for call in calls:
        values = []
        for argument in call:
            if isinstance(argument, bytes):
                data += bytes(-len(data) % 16)
                values.append(BASE + end + len(data))
                data += argument
            else:
                values.append(argument)
        rows += CALL.pack(*values, *[0] * (6 - len(values)))
    rows += struct.pack("<q", END)
    size = end + len(data)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, BASE + header_size, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, size, 4096)
    return bytes(elf + segment + code + rows + data)


def _add(
    archive: bytearray, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
) -> None:
    """One file of a cpio archive of the kind newc, Documentation/driver-api/early-userspace."""
    encoded = _c(name)
    fields = (len(archive), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    archive += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    archive += bytes(-len(archive) % 4) + data
    archive += bytes(-len(archive) % 4)
