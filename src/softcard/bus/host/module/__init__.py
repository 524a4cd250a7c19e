"""softcard's kernel module on this machine: building it with DKMS, loading it, who may use it."""

from softcard.bus.host.module.dkms import Build
from softcard.bus.host.module.errors import ModuleError
from softcard.bus.host.module.installation import check_machine, install, uninstall
from softcard.bus.host.module.state import DeviceNode, SecureBoot, State, look

__all__ = [
    "Build",
    "DeviceNode",
    "ModuleError",
    "SecureBoot",
    "State",
    "check_machine",
    "install",
    "look",
    "uninstall",
]
