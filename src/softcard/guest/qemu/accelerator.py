"""Whether KVM can be used: `/dev/kvm` that opens says little, so a kernel is booted in it once."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from softcard.guest.qemu.initramfs import initramfs
from softcard.guest.qemu.kernel import StockKernel
from softcard.guest.qemu.machine import KVM, TCG, Accelerator
from softcard.guest.qemu.program import Qemu, folder

DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Where KVM works, the kernel is at its init in less than a second.
LIMIT = 10.0
MEMORY = "256M"
# What the kernel says when it is at its init, and that has ended.
ALIVE = b"Attempted to kill init!"


def accelerator_for(qemu: Qemu, kernel: StockKernel) -> Accelerator:
    """KVM where this kernel boots in it, TCG otherwise; what was found is kept until a reboot."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return TCG
    key = f"{_boot_id()} {qemu.version} {kernel.release}"
    results = _load()
    if key not in results:
        results = {key: boots_in_kvm(qemu, kernel)}
        _save(results)
    return KVM if results[key] else TCG


def boots_in_kvm(qemu: Qemu, kernel: StockKernel) -> bool:
    """Boot the kernel with an init that ends at once, and see whether it gets there."""
    with tempfile.TemporaryDirectory(prefix="softcard-kvm-") as work:
        archive = Path(work, "initramfs")
        archive.write_bytes(initramfs([]))
        command = [
            *qemu.command, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-M", "q35", *KVM.arguments, "-m", MEMORY,
            "-kernel", str(kernel.bootable), "-initrd", str(archive),
            "-append", "console=ttyS0 panic=-1", "-serial", "stdio",
        ]  # fmt: skip
        try:
            said = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env={**os.environ, **qemu.environment},
                timeout=LIMIT, check=False,
            ).stdout  # fmt: skip
        except (subprocess.TimeoutExpired, OSError):
            return False
    return ALIVE in said


def _boot_id() -> str:
    # Another kernel, or another machine with the same home, may have another KVM.
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return os.uname().release


def _load() -> dict[str, bool]:
    try:
        results = json.loads(_file().read_bytes())
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def _save(results: dict[str, bool]) -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        _file().write_text(json.dumps(results))
    except OSError:
        pass  # it is found out again the next time


def _file() -> Path:
    return folder() / "kvm.json"
