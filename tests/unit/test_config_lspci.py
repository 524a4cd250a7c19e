"""What lspci, which knows the specification independently of us, makes of our registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

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
from softcard.pcie.capability import Capability
from softcard.pcie.config import CONFIG_SIZE, BarLayout, ConfigSpace, Identity

LSPCI = shutil.which("lspci", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
pytestmark = pytest.mark.skipif(
    LSPCI is None, reason="lspci is missing: install the package pciutils"
)

IDENTITY = Identity(
    vendor_id=0x1DED, device_id=0x0001, revision_id=2, class_code=0x010802, interrupt_pin=1
)
BARS = {0: BarLayout(0x4000, bits=64, prefetchable=True), 2: BarLayout(0x10000)}
COMPLAINTS = re.compile(
    r"<chain|<access denied>|<\?>|unknown|invalid|unimplemented|reserved|rsvd|!!!|\?\?", re.I
)


def dump(config: ConfigSpace) -> str:
    """All of it, in the form that `lspci -xxxx` prints."""
    # lspci shows the second half of the link's registers of device 0, function 0 only.
    lines = ["00:00.0 Card"]
    for at in range(0, CONFIG_SIZE, 16):
        row = (config.read(at + i, 1) for i in range(16))
        lines.append(f"{at:02x}: " + " ".join(f"{byte:02x}" for byte in row))
    return "\n".join(lines) + "\n"


def lspci(config: ConfigSpace, folder: Path) -> str:
    """What `lspci -vvv` says, runs of blanks as one."""
    file = folder / "dump.txt"
    file.write_text(dump(config))
    run = subprocess.run(
        [str(LSPCI), "-vvv", "-n", "-F", str(file)], capture_output=True, text=True, check=True
    )
    return re.sub(r"\s+", " ", run.stdout)


def config_with(capabilities: Sequence[Capability]) -> ConfigSpace:
    return ConfigSpace(IDENTITY, BARS, capabilities)


EVERYTHING = [
    PowerManagement(d1=True, d2=True, pme=range(5)),
    Msi(vectors=32),
    MsiX(vectors=2048, table=(2, 0), pba=(2, 0x8000)),
    PciExpress(link_speed=16, link_width=4, max_payload=512),
    VendorSpecific(b"hello", at=0xC0),
    RawCapability(0x13, b"\x06\x03\x00\x00"),
    AdvancedErrorReporting(),
    DeviceSerialNumber(0x0123456789ABCDEF),
    VendorSpecificExtended(0xBEEF, 3, b"data"),
    RawExtendedCapability(0x18, 1, b"\x01\x04\x02\x04"),
]


def test_lspci_decodes_every_capability(tmp_path: Path) -> None:
    text = lspci(config_with(EVERYTHING), tmp_path)
    for line in (
        "[40] Power Management version 3 Flags: PMEClk- DSI- D1+ D2+ AuxCurrent=0mA "
        "PME(D0+,D1+,D2+,D3hot+,D3cold+) Status: D0 NoSoftRst+ PME-Enable- DSel=0 DScale=0 PME-",
        "[48] MSI: Enable- Count=1/32 Maskable+ 64bit+",
        "[60] MSI-X: Enable- Count=2048 Masked- Vector table: BAR=2 offset=00000000 "
        "PBA: BAR=2 offset=00008000",
        "[6c] Express (v2) Endpoint,",
        "DevCap: MaxPayload 512 bytes, PhantFunc 0, Latency L0s unlimited, L1 unlimited",
        "FLReset+",
        "LnkCap: Port #0, Speed 16GT/s, Width x4, ASPM not supported",
        "LnkSta: Speed 16GT/s, Width x4",
        "Supported Link Speeds: 2.5-16GT/s",
        "Target Link Speed: 16GT/s",
        "[c0] Vendor Specific Information: Len=08",
        "[a8] PCI Advanced Features AFCap: TP+ FLR+",
        "[100 v2] Advanced Error Reporting",
        "UESvrt: DLP+ SDES+ TLP- FCP+ CmpltTO- CmpltAbrt- UnxCmplt- RxOF+ MalfTLP+ ECRC- UnsupReq-",
        "CEMsk: RxErr- BadTLP- BadDLLP- Rollover- Timeout- AdvNonFatalErr+",
        "[12c v1] Device Serial Number 01-23-45-67-89-ab-cd-ef",
        "[138 v1] Vendor Specific Information: ID=beef Rev=3 Len=00c",
        "[144 v1] Latency Tolerance Reporting Max snoop latency: 32ns Max no snoop latency: 64ns",
    ):
        assert line in text
    # Nobody knows what vendors mean, and lspci says so with a question mark.
    known = re.sub(r"Vendor Specific Information: [\w= ]+<\?>", "", text)
    assert COMPLAINTS.findall(known) == []
    assert text.count("Capabilities: [") == len(EVERYTHING)


def test_lspci_sees_what_a_driver_has_set(tmp_path: Path) -> None:
    config = config_with(EVERYTHING)
    config.write(0x04, 2, 0x0406)
    config.write(0x10, 8, 0x12_3456_4000)
    config.write(0x18, 4, 0xFE000000)
    config.write(0x44, 2, 3)
    config.write(0x4C, 8, 0x1_FEE0_0000)
    config.write(0x54, 2, 0x4021)
    config.write(0x58, 4, 0x80000001)
    config.write(0x4A, 2, 0x0051)
    config.write(0x62, 2, 0xC000)
    text = lspci(config, tmp_path)
    for line in (
        "Control: I/O- Mem+ BusMaster+",
        "DisINTx+",
        "Memory at 1234564000 (64-bit, prefetchable)",
        "Memory at fe000000 (32-bit, non-prefetchable)",
        "Status: D3",
        "MSI: Enable+ Count=32/32",
        "Address: 00000001fee00000 Data: 4021 Masking: 80000001 Pending: 00000000",
        "MSI-X: Enable+ Count=2048 Masked+",
    ):
        assert line in text


@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("address64", [False, True])
@pytest.mark.parametrize("vectors", [1, 32])
def test_lspci_decodes_every_layout_of_msi(
    tmp_path: Path, vectors: int, address64: bool, masking: bool
) -> None:
    declared = Msi(vectors=vectors, address64=address64, masking=masking)
    text = lspci(config_with([declared, PowerManagement()]), tmp_path)
    signs = "-+"
    assert (
        f"MSI: Enable- Count=1/{vectors} Maskable{signs[masking]} 64bit{signs[address64]}" in text
    )
    assert "Power Management version 3" in text
    assert COMPLAINTS.findall(text) == []


@pytest.mark.parametrize(
    ("link_speed", "link_width"), [(2.5, 1), (5, 2), (8, 4), (16, 8), (32, 16), (32, 32)]
)
def test_lspci_decodes_every_link(tmp_path: Path, link_speed: float, link_width: int) -> None:
    declared = PciExpress(link_speed=link_speed, link_width=link_width)
    text = lspci(config_with([declared]), tmp_path)
    assert f"LnkCap: Port #0, Speed {link_speed}GT/s, Width x{link_width}" in text
    assert f"LnkSta: Speed {link_speed}GT/s, Width x{link_width}" in text
    assert COMPLAINTS.findall(text) == []


def test_lspci_decodes_an_integrated_endpoint(tmp_path: Path) -> None:
    text = lspci(config_with([PciExpress(integrated=True, flr=False)]), tmp_path)
    assert "Express (v2) Root Complex Integrated Endpoint," in text
    assert "FLReset-" in text
    assert "LnkCap" not in text
    assert COMPLAINTS.findall(text) == []
