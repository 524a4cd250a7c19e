"""What this machine's kernel tells of its devices: when their drivers have taken them."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

NETLINK_KOBJECT_UEVENT = 15
FROM_KERNEL = 1
MESSAGE = 1 << 16
TIMEOUT = 10.0
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
UDEV = Path("/run/udev/control")


class DriverWatch:
    """Hears which PCI devices get a driver from now on; a context manager.

    A driver that has to be loaded first comes some time after the device, and one that probes in
    the background is ready some time after it has taken the device.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, FROM_KERNEL))
        self._bound: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait(self, device: Path, timeout: float = TIMEOUT) -> bool:
        """Wait until the driver of a PCI device is ready, and what udev makes of it is done.

        Args:
            device: its folder in sysfs.
            timeout: seconds.

        Returns:
            Whether it is; at once False where this machine has no driver for it.
        """
        end = time.monotonic() + timeout
        while device.name not in self._bound:
            if not (device / "driver").exists() and not _has_module(device):
                return False
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                return False
            self._receive()
        if UDEV.exists():
            subprocess.run(["udevadm", "settle", f"--timeout={timeout:.0f}"], check=False)
        return True

    def _receive(self) -> None:
        try:
            message = self._socket.recv(MESSAGE)
        except OSError:
            return  # some were lost: the kernel has told more than was read
        what, _, path = message.partition(b"\0")[0].decode(errors="replace").partition("@")
        if what == "bind":
            self._bound.add(path.rpartition("/")[2])


def _has_module(device: Path) -> bool:
    """Whether there is a driver to load."""
    try:
        alias = (device / "modalias").read_text().strip()
        done = subprocess.run(
            ["modprobe", "--resolve-alias", alias], capture_output=True, check=False,
            env={"PATH": f"{os.environ.get('PATH', '')}:{PATH}"},
        )  # fmt: skip
    except OSError:
        return False
    return bool(done.stdout.strip())
