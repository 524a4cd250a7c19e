"""Cards with real drivers: interrupts of every kind, blocks, edu, and what lspci says."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from tests.uml.cards import VECTORS, EveryCapability, ProbeCard
from tests.uml.conftest import Modules

from softcard import Card
from softcard.bus.uml import UmlBus, UmlSlot
from softcard.cards.edu import Edu
from softcard.cards.nvme import Nvme
from softcard.cards.printer import Printer
from softcard.guest.uml import UmlGuest
from softcard.testing.plugin import BootGuest

FILES = "/sys/kernel/debug/softcard_probe"


def driven(guest: UmlGuest, module: Path, card: ProbeCard, kind: str) -> UmlSlot:
    """Plug the card in with its driver bound to it."""
    guest.load_module(module, f"kind={kind}")
    slot = guest.bus.plug(card)
    guest.wait_for_path(f"{FILES}/ring")
    return slot


def counts(guest: UmlGuest) -> list[int]:
    return [int(line) for line in guest.sh(f"cat {FILES}/counts").stdout.split()]


def wait_counts(guest: UmlGuest, total: int) -> list[int]:
    """Wait until at least `total` interrupts have been handled."""
    deadline = time.monotonic() + 20
    while sum(found := counts(guest)) < total:
        assert time.monotonic() < deadline, found
    return found


# Interrupts.


@pytest.mark.parametrize(
    ("kind", "name", "vectors"),
    [("msix", "MSI-X", VECTORS), ("msi", "MSI", 1), ("intx", "INTx", 1)],
)
def test_the_driver_gets_every_interrupt_of_the_kind_that_it_chose(
    guest: UmlGuest, modules: Modules, kind: str, name: str, vectors: int
) -> None:
    card = ProbeCard()
    driven(guest, modules("softcard_probe"), card, kind)
    assert guest.sh(f"cat {FILES}/kind").stdout.strip() == name
    assert counts(guest) == [0] * vectors
    for number in range(1, 101):
        guest.write_file(f"{FILES}/ring", "1")
        if kind == "intx":
            # Two causes that the driver sees at once are one interrupt of a line.
            wait_counts(guest, number)
    assert sum(wait_counts(guest, 100)) == 100


@pytest.mark.parametrize("kind", ["msix", "msi"])
def test_a_burst_of_messages_that_is_longer_than_the_guests_buffers_comes_whole(
    guest: UmlGuest, modules: Modules, kind: str
) -> None:
    card = ProbeCard()
    driven(guest, modules("softcard_probe"), card, kind)
    guest.write_file(f"{FILES}/ring", "500")
    found = wait_counts(guest, 500)
    assert sum(found) == 500
    if kind == "msix":
        assert found == [125] * VECTORS


def test_messages_of_several_threads_all_come(guest: UmlGuest, modules: Modules) -> None:
    card = ProbeCard()
    driven(guest, modules("softcard_probe"), card, "msix")
    each = 300

    def signal(vector: int) -> None:
        for _ in range(each):
            card.signal(vector)

    threads = [threading.Thread(target=signal, args=(vector,)) for vector in range(VECTORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wait_counts(guest, each * VECTORS) == [each] * VECTORS


def test_a_line_that_other_threads_assert_is_handled_until_it_is_released(
    guest: UmlGuest, modules: Modules
) -> None:
    card = ProbeCard()
    driven(guest, modules("softcard_probe"), card, "intx")
    for number in range(200):
        card.signal(0)
        if number % 20 == 0:
            wait_counts(guest, number // 20 + 1)
    deadline = time.monotonic() + 20
    while card.bar0.cause.value:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupt_while_the_driver_is_away_does_no_harm(
    guest: UmlGuest, modules: Modules
) -> None:
    card = ProbeCard()
    driven(guest, modules("softcard_probe"), card, "msix")
    guest.unload_module("softcard_probe")
    for vector in range(VECTORS):
        card.signal(vector)
    guest.load_module(modules("softcard_probe"), "kind=intx")
    guest.wait_for_path(f"{FILES}/ring")
    guest.write_file(f"{FILES}/ring", "1")
    wait_counts(guest, 1)


# Memory.


def test_blocks_of_every_size_and_alignment_reach_memory_and_come_back(
    guest: UmlGuest, modules: Modules
) -> None:
    card = ProbeCard()
    driven(guest, modules("softcard_probe"), card, "msix")
    assert guest.sh(f"cat {FILES}/blocks").stdout == "fine\n"
    assert any(card.bar2.memory.view[:4096])


# edu.


@pytest.mark.parametrize("kind", ["MSI", "INTx"])
def test_edu_passes_its_drivers_tests(
    boot_guest: BootGuest, uml_bus: UmlBus, modules: Modules, kind: str
) -> None:
    class EduWithIntxOnly(Edu):
        msi = None  # type: ignore[assignment]

    # The engine reaches 28 bits only.
    guest = boot_guest(uml_bus, memory=256 << 20)
    guest.load_module(modules("edu_driver"))
    uml_bus.plug(Edu() if kind == "MSI" else EduWithIntxOnly())
    guest.log.wait_for(rf"identification 0x010000ed, {kind}")
    guest.log.wait_for("liveness: wrote 0x12345678, read 0xedcba987")
    guest.log.wait_for("factorial of 10: 3628800 .*0x1")
    guest.log.wait_for("DMA: these words went to the card and came back .*0x100")


# lspci.


def lspci(guest: UmlGuest, slot: UmlSlot) -> str:
    result = guest.run(["lspci", "-D", "-s", slot.address, "-vvv", "-xxxx"])
    # Without a folder of the kernel's own modules it cannot say which module drives a card.
    assert result.stderr in ("", "lspci: Unable to load libkmod resources: error -2\n")
    # How lspci marks what it finds odd.
    for mark in ("!!!", "???", "<unknown>", "<chain", "<access denied>", "unknown header"):
        assert mark not in result.stdout
    return result.stdout


def test_lspci_decodes_every_capability_without_complaint(guest: UmlGuest, uml_bus: UmlBus) -> None:
    text = lspci(guest, uml_bus.plug(EveryCapability()))
    for expected in (
        "Memory controller",
        "Device 0042",
        "(rev 12)",
        "Power Management version 3",
        "D1+ D2+",
        "MSI: Enable- Count=1/32 Maskable+ 64bit+",
        "MSI-X: Enable- Count=64 Masked-",
        "Vector table: BAR=2 offset=00000000",
        "PBA: BAR=2 offset=00001000",
        "Express (v2)",
        "MaxPayload 512 bytes",
        "FLReset+",
        "Speed 16GT/s",
        "Width x8",
        "Vendor Specific Information: Len=0b",
        "Advanced Error Reporting",
        "Device Serial Number 00-11-22-ff-fe-33-44-55",
        "Vendor Specific Information: ID=1234 Rev=2 Len=014",
        "Latency Tolerance Reporting",
        "Region 0: Memory at",
        "(64-bit, prefetchable)",
    ):
        assert expected in text.split("\n00: ")[0]
    # The whole of the extended space was read: 256 lines of 16 bytes.
    assert len(re.findall(r"^[0-9a-f]{2,3}: ", text, re.MULTILINE)) == 256


@pytest.mark.parametrize("card", [Printer, Edu, Nvme, ProbeCard])
def test_lspci_has_no_complaint_about_the_shipped_cards(
    guest: UmlGuest, uml_bus: UmlBus, card: type[Card]
) -> None:
    assert "Region 0: Memory at" in lspci(guest, uml_bus.plug(card()))
