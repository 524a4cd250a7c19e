"""DMA that is confined to what drivers have mapped."""

from __future__ import annotations

import re

from tests.host.conftest import Inside, Modules

from softcard.guest.qemu import QemuGuest


def test_a_card_reaches_what_its_driver_has_mapped_and_nothing_else(
    guest: QemuGuest, inside: Inside, modules: Modules
) -> None:
    since = guest.log.position()
    said = inside("dma", modules("tests/host/modules/softcard_dma")).stdout
    print(said)
    assert "segments: 4000\n" in said
    assert "shared: 12288\n" in said
    assert said.endswith("pulled\n")
    first = re.search(r"refused: wrong direction (0x[0-9a-f]+)", said)
    assert first is not None
    faults = [line for line in guest.log.since(since) if "DMA fault" in line]
    assert f"function 0 writes 1000 bytes at {first[1]}, which its driver has not mapped" in (
        "\n".join(faults)
    )


def test_an_nvme_disk_is_verified_with_several_queues_and_depths(inside: Inside) -> None:
    assert inside("verify").stdout.splitlines()[-1] == "verified"
