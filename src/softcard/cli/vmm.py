"""What to type so that a virtual machine gets a card that is served over vfio-user."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

# Any that is free; functions of one card have to say that they belong together.
DEVICE_NUMBER = 0x1E


def lines(paths: Sequence[Path]) -> Iterator[str]:
    """Words for QEMU, Cloud Hypervisor and libvirt.

    Args:
        paths: the sockets of the card's functions.
    """
    devices = list(_devices(paths))
    shared = "-object memory-backend-memfd,id=memory,size=2G,share=on"
    yield "QEMU 10.1 or newer; without the shared memory it works, but slowly:"
    yield f"  qemu-system-x86_64 -M q35,memory-backend=memory -m 2G {shared} \\"
    words = [f"    -device '{device}'" for device in devices]
    yield " \\\n".join([*words, "    ..."])
    yield "Cloud Hypervisor:"
    words = [f"    --user-device socket={path}" for path in paths]
    yield " \\\n".join(["  cloud-hypervisor --memory size=2G,shared=on", *words, "    ..."])
    yield "libvirt, within <domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>:"
    yield "  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    yield "  <qemu:commandline>"
    for device in devices:
        yield f"    <qemu:arg value='-device'/><qemu:arg value={quoteattr(device)}/>"
    yield "  </qemu:commandline>"


def _devices(paths: Sequence[Path]) -> Iterator[str]:
    for function, path in enumerate(paths):
        device: dict[str, object] = {
            "driver": "vfio-user-pci",
            "socket": {"type": "unix", "path": str(path)},
        }
        if len(paths) > 1:
            device["addr"] = f"{DEVICE_NUMBER:x}.{function}"
            device["multifunction"] = function == 0
        yield json.dumps(device)
