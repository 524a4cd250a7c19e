"""`softcard doctor`: what this machine can run, and what mends the rest."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from softcard.cli.findings import Finding, show
from softcard.cli.output import out
from softcard.errors import SoftcardError
from softcard.model.options import Size

MIN_DISK, MIN_MEMORY, GUEST_MEMORY = Size("4G"), Size("1G"), Size("512M")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = {
    "lspci": "pciutils",
    "nvme": "nvme-cli",
    "fio": "fio",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "insmod": "kmod",
}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
PTRACE_TRACEME = 0


@click.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check what this machine can run, and how to mend what is missing.

    The exit status is 1 where cards cannot be run.
    """
    findings = [finding for look in CHECKS for finding in look()]
    show(findings)
    broken = [f.about for f in findings if f.good is False and f.needed]
    if broken:
        out().print(f"\nCards cannot be run here yet: {', '.join(broken)}.", style="red")
        ctx.exit(1)
    out().print("\nCards can be run here: softcard demo shows one.", style="green")


def check_machine() -> Iterator[Finding]:
    """Python and the processor."""
    system, machine = os.uname().sysname, os.uname().machine
    yield Finding(
        "machine", (system, machine) == ("Linux", "x86_64"), f"{system} on {machine}",
        "" if machine == "x86_64" else "the embedded Linux needs an x86-64 machine",
    )  # fmt: skip
    yield Finding("Python", sys.version_info >= (3, 11), sys.version.split()[0])


def check_kernel() -> Iterator[Finding]:
    """The embedded kernel, and what builds it."""
    from softcard.guest.kernel import find_kernel
    from softcard.guest.kernel.tools import missing_packages

    try:
        kernel = find_kernel()
    except SoftcardError as error:
        yield Finding("embedded kernel", False, str(error))
        return
    missing = missing_packages()
    install = f"sudo apt-get install {' '.join(missing)}"
    if kernel is None:
        yield Finding(
            "embedded kernel", False, "not built yet; it is when it is first needed",
            "softcard kernel build", needed=bool(missing),
        )  # fmt: skip
    else:
        yield Finding("embedded kernel", True, f"Linux {kernel.release}")
    yield Finding(
        "compiler and tools", not missing,
        "here" if not missing else f"without {', '.join(missing)} no kernel or module can be built",
        install if missing else "", needed=kernel is None,
    )  # fmt: skip


def check_tracing() -> Iterator[Finding]:
    """One of seccomp and ptrace runs the guest's processes."""
    seccomp, ptrace = _in_child(_install_filter), _in_child(_be_traced)
    found = f"seccomp {_allowed(seccomp)}, ptrace {_allowed(ptrace)}"
    if seccomp or ptrace:
        slower = "" if seccomp else "; without seccomp the guest is slower"
        yield Finding("guest processes", True, found + slower)
        return
    yield Finding(
        "guest processes", False, f"{found}: the guest needs one of them",
        "in a container: --cap-add SYS_PTRACE, or a seccomp profile that allows either",
    )  # fmt: skip


def _allowed(allowed: bool) -> str:
    return "allowed" if allowed else "forbidden"


def _install_filter() -> bool:
    libc = ctypes.CDLL(None)
    # One instruction: allow everything.
    instruction = ctypes.create_string_buffer(b"\x06\0\0\0\0\0\xff\x7f", 8)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(1, ctypes.addressof(instruction))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    status: int = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    return status == 0


def _be_traced() -> bool:
    status: int = ctypes.CDLL(None).ptrace(PTRACE_TRACEME, 0, None, None)
    return status == 0


def _in_child(attempt: Callable[[], bool]) -> bool:
    """What an attempt that changes the process gives in one of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if attempt() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def check_room() -> Iterator[Finding]:
    """Disk, memory, and where temporary files go."""
    from softcard.guest.kernel.cache import cache_folder

    cache = cache_folder()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = Size(shutil.disk_usage(there).free)
    yield Finding(
        "free disk", free >= MIN_DISK, f"{_rounded(free)} for {cache}",
        "" if free >= MIN_DISK else f"building the kernel needs {MIN_DISK}: set XDG_CACHE_HOME",
        needed=False,
    )  # fmt: skip
    memory = Size(_available_memory())
    yield Finding(
        "free memory", memory >= MIN_MEMORY, _rounded(memory),
        "" if memory >= MIN_MEMORY else "give the guest less: softcard run --memory 128M ...",
        needed=False,
    )  # fmt: skip
    folder = _memory_folder()
    room = shutil.disk_usage(folder).free
    if not _can_execute(folder):
        found, good = f"would be in {folder}, which is mounted noexec or full", False
    else:
        found, good = f"in {folder}, with {_rounded(room)} free", room >= GUEST_MEMORY
    yield Finding(
        "the guest's memory", good, found,
        "" if good else f"set TMPDIR to a folder with {GUEST_MEMORY}, not mounted noexec",
    )  # fmt: skip


def _memory_folder() -> str:
    """Where User Mode Linux keeps a guest's memory: it looks no further than the first of these."""
    for name in ("TMPDIR", "TMP", "TEMP"):
        folder = os.environ.get(name, "")
        if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return folder
    return "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"


def _can_execute(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(mmap.PAGESIZE)
            mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError:
        return False
    return True


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _rounded(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def check_tools() -> Iterator[Finding]:
    """Programs that demonstrations and tests use in the guest, which are this machine's own."""
    missing = [name for name in TOOLS if shutil.which(name, path=SEARCH_PATH) is None]
    packages = " ".join(sorted({TOOLS[name] for name in missing}))
    yield Finding(
        "programs for the guest", not missing,
        f"without {', '.join(missing)}" if missing else ", ".join(TOOLS),
        f"sudo apt-get install {packages}" if missing else "", needed=False,
    )  # fmt: skip


def check_qemu() -> Iterator[Finding]:
    """QEMU and a kernel for it, which --guest qemu needs."""
    from softcard.guest.qemu.accelerator import accelerator_for
    from softcard.guest.qemu.kernel import find_kernel
    from softcard.guest.qemu.program import need_qemu

    try:
        qemu, kernel = need_qemu(), find_kernel()
    except SoftcardError as error:
        yield Finding("QEMU", False, str(error), "softcard qemu get", needed=False)
        return
    where = "in a folder of yours" if qemu.folder else "the machine's own"
    yield Finding("QEMU", True, f"{qemu.version}, {where}", needed=False)
    if kernel is None:
        yield Finding(
            "kernel for QEMU", False, "not fetched yet", "softcard qemu get", needed=False
        )
        return
    accelerator = accelerator_for(qemu, kernel)
    slower = "" if accelerator.name == "KVM" else ", since no kernel boots in /dev/kvm"
    yield Finding("kernel for QEMU", True, f"Linux {kernel.release}")
    yield Finding("processor in QEMU", None, f"{accelerator.name}{slower}")


def check_host_bus() -> Iterator[Finding]:
    """The kernel module, which --bus host needs; worth knowing, and not more."""
    from softcard.bus.host.device import open_device

    try:
        os.close(open_device())
    except SoftcardError:
        yield Finding("host bus", None, "not ready: softcard host status says why")
    else:
        yield Finding("host bus", True, "the kernel module is loaded, and yours to use")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_machine,
    check_kernel,
    check_tracing,
    check_room,
    check_tools,
    check_qemu,
    check_host_bus,
)
