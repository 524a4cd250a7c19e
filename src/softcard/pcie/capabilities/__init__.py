"""Capabilities of a function, one a file."""

from softcard.pcie.capabilities.aer import AdvancedErrorReporting
from softcard.pcie.capabilities.msi import Msi
from softcard.pcie.capabilities.msix import MsiX
from softcard.pcie.capabilities.pci_express import PciExpress
from softcard.pcie.capabilities.power_management import PowerManagement
from softcard.pcie.capabilities.raw import RawCapability, RawExtendedCapability
from softcard.pcie.capabilities.serial_number import DeviceSerialNumber
from softcard.pcie.capabilities.vendor_specific import VendorSpecific
from softcard.pcie.capabilities.vsec import VendorSpecificExtended

__all__ = [
    "AdvancedErrorReporting",
    "DeviceSerialNumber",
    "Msi",
    "MsiX",
    "PciExpress",
    "PowerManagement",
    "RawCapability",
    "RawExtendedCapability",
    "VendorSpecific",
    "VendorSpecificExtended",
]
