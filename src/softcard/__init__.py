"""softcard turns a Python class into a PCIe card that a real, unmodified driver uses."""

from softcard.errors import (
    DeclarationError,
    DmaError,
    GuestError,
    PlugError,
    SoftcardError,
    UsageError,
)
from softcard.model.bar import Bar, Memory, Shadow
from softcard.model.card import Card
from softcard.model.function import Function
from softcard.model.link import PowerState, ResetKind
from softcard.pcie.capabilities import (
    AdvancedErrorReporting,
    DeviceSerialNumber,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    RawCapability,
    RawExtendedCapability,
    VendorSpecific,
    VendorSpecificExtended,
)
from softcard.pcie.register import (
    RC,
    RO,
    RW,
    W1C,
    W1S,
    WO,
    Access,
    Field,
    Register,
    RegisterArray,
)

__all__ = [
    "RC",
    "RO",
    "RW",
    "W1C",
    "W1S",
    "WO",
    "Access",
    "AdvancedErrorReporting",
    "Bar",
    "Card",
    "DeclarationError",
    "DeviceSerialNumber",
    "DmaError",
    "Field",
    "Function",
    "GuestError",
    "Memory",
    "Msi",
    "MsiX",
    "PciExpress",
    "PlugError",
    "PowerManagement",
    "PowerState",
    "RawCapability",
    "RawExtendedCapability",
    "Register",
    "RegisterArray",
    "ResetKind",
    "Shadow",
    "SoftcardError",
    "UsageError",
    "VendorSpecific",
    "VendorSpecificExtended",
    "run",
]


def run(card: type[Card]) -> None:
    """Run a card from its own file, with the command line of `softcard run`.

    Does nothing when the file is imported, by `softcard run FILE` or by a test.
    """
    if card.__module__ != "__main__":
        return
    from softcard.cli.run import run_from_file

    run_from_file(card)
