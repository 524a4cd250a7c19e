"""Cards in QEMU with a stock Linux: drivers bound, data right, resets, plugging."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vfio_user.cards import MsiDisk, TwoFunctions
from tests.vfio_user.conftest import Access, sha256

from softcard import GuestError, PlugError
from softcard.cards.edu import Edu
from softcard.cards.nvme import Nvme
from softcard.cards.printer import Printer
from softcard.guest.qemu import QemuBus, QemuGuest, QemuSlot
from softcard.model.options import Size

DISK = "/dev/nvme0n1"
# Registers of edu.
LIVENESS, FACTORIAL, STATUS = "0x04", "0x08", "0x20"
# Raises interrupts one after the other: SYSFS COUNT. The driver disables INTx with each, the
# program acknowledges and enables it again.
INTERRUPTS = """
import mmap, os, sys
with open(sys.argv[1] + "/resource0", "r+b") as file:
    registers = memoryview(mmap.mmap(file.fileno(), 0)).cast("I")
uio, config = os.open("/dev/uio0", os.O_RDONLY), os.open(sys.argv[1] + "/config", os.O_RDWR)
for number in range(int(sys.argv[2])):
    registers[0x60 // 4] = 1 << number
    count = int.from_bytes(os.read(uio, 4), "little")
    print(count, hex(registers[0x24 // 4]))
    registers[0x64 // 4] = 1 << number
    command = int.from_bytes(os.pread(config, 2, 4), "little")
    print(bool(command & 1 << 10))
    os.pwrite(config, (command & ~(1 << 10)).to_bytes(2, "little"), 4)
"""


def small_disk() -> Nvme:
    return Nvme(size=Size("64M"))


def plug_disk(bus: QemuBus, guest: QemuGuest, disk: Nvme | None = None) -> QemuSlot:
    """Plug a disk in, and wait until the stock driver has looked for partitions."""
    slot = bus.plug(disk or small_disk())
    guest.wait_for_path(DISK)
    guest.sh(f"dd if={DISK} of=/dev/null count=1 2>/dev/null")
    return slot


def test_the_stock_driver_takes_a_disk_that_was_there_at_boot(qemu_bus: QemuBus) -> None:
    slot = qemu_bus.plug(small_disk())
    guest = qemu_bus.boot()
    # Without waiting: drivers of what is there at boot are there when the guest is.
    driver = guest.run(["readlink", f"{slot.sysfs}/driver"]).stdout
    assert driver.strip().endswith("/nvme")
    assert guest.run(["blockdev", "--getsize64", DISK]).stdout == f"{64 << 20}\n"
    guest.sh(f"mkfs.ext4 -q {DISK} && mount {DISK} /mnt && head -c 8M /dev/urandom > /mnt/file")
    before = sha256(guest, "/mnt/file")
    guest.sh("umount /mnt")

    guest.reboot()
    guest.sh(f"mount {DISK} /mnt")
    assert sha256(guest, "/mnt/file") == before
    guest.sh(f"umount /mnt && fsck.ext4 -f -n {DISK}")


def test_a_disk_holds_what_a_file_system_writes(bus: QemuBus, guest: QemuGuest) -> None:
    plug_disk(bus, guest)
    guest.sh(f"mkfs.ext4 -q {DISK} && mount {DISK} /mnt && head -c 8M /dev/urandom > /mnt/file")
    before = sha256(guest, "/mnt/file")
    guest.sh(f"umount /mnt && mount {DISK} /mnt")
    assert sha256(guest, "/mnt/file") == before
    guest.sh(f"umount /mnt && fsck.ext4 -f -n {DISK}")


def test_a_disk_bears_resets_of_its_controller_and_its_function(
    bus: QemuBus, guest: QemuGuest
) -> None:
    slot = plug_disk(bus, guest)
    guest.sh(f"head -c 1M /dev/urandom > /tmp/data && dd if=/tmp/data of={DISK} oflag=direct bs=1M")
    before = sha256(guest, "/tmp/data")
    read = f"dd if={DISK} of=/tmp/read iflag=direct bs=1M count=1"
    guest.sh(f"echo 1 > /sys/class/nvme/nvme0/reset_controller && {read}")
    assert sha256(guest, "/tmp/read") == before
    guest.sh(f"echo 1 > {slot.sysfs}/reset && {read}")
    assert sha256(guest, "/tmp/read") == before


def test_edu_computes(bus: QemuBus, access: Access) -> None:
    slot = bus.plug(Edu())
    assert access(slot.sysfs, "0x00", f"{LIVENESS}=0x12345678", LIVENESS) == [
        0x010000ED,
        0xEDCBA987,
    ]
    access(slot.sysfs, f"{FACTORIAL}=10")
    assert access(slot.sysfs, STATUS, FACTORIAL) == [0, math.factorial(10)]


def test_interrupts_of_edu_reach_a_program_in_the_guest(bus: QemuBus, guest: QemuGuest) -> None:
    slot = bus.plug(Edu())
    guest.sh("modprobe uio_pci_generic")
    guest.write_file("/sys/bus/pci/drivers/uio_pci_generic/new_id", "1234 11e8")
    guest.wait_for_path("/dev/uio0")
    told = guest.run(["python3", "-c", INTERRUPTS, slot.sysfs, "3"], timeout=30).stdout
    guest.write_file("/sys/bus/pci/drivers/uio_pci_generic/remove_id", "1234 11e8")
    assert told == "1 0x1\nTrue\n2 0x2\nTrue\n3 0x4\nTrue\n"


def test_a_printer_prints(bus: QemuBus, access: Access, capsys: pytest.CaptureFixture[str]) -> None:
    slot = bus.plug(Printer())
    # A read comes after the posted write.
    access(slot.sysfs, "0x00=0xdeadbeef", "0x00")
    assert "the driver wrote 0xdeadbeef" in capsys.readouterr().out


def test_two_cards_and_one_of_two_functions_work_at_once(
    bus: QemuBus, guest: QemuGuest, access: Access
) -> None:
    plug_disk(bus, guest)
    edu, both = bus.plug(Edu()), bus.plug(TwoFunctions())
    second = both.sysfs.removesuffix("0") + "1"
    assert access(both.sysfs, "0", "4=0x11", "4") == [1, 0x11]
    assert access(second, "0", "4=0x22", "4") == [2, 0x22]
    assert access(both.sysfs, "4") == [0x11]
    assert access(edu.sysfs, "0") == [0x010000ED]
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=64k count=16 oflag=direct")

    both.unplug()
    assert guest.sh(f"ls -d {both.sysfs} {second}", check=False).stdout == ""
    again = bus.plug(TwoFunctions())
    assert access(again.sysfs.removesuffix("0") + "1", "0", "4") == [2, 0]
    assert access(edu.sysfs, "0") == [0x010000ED]


@pytest.mark.parametrize("take_out", [QemuSlot.unplug, QemuSlot.pull])
def test_a_disk_with_msi_is_taken_out_and_plugged_in_again(
    bus: QemuBus, guest: QemuGuest, take_out: object
) -> None:
    number = None
    for _ in range(3):
        slot = plug_disk(bus, guest, MsiDisk(size=Size("64M")))
        assert number in (None, slot.number), "the slot is free again"
        number = slot.number
        assert "PCI-MSI" in guest.sh("grep nvme0q0 /proc/interrupts").stdout
        guest.sh(f"dd if={DISK} of=/dev/null bs=1M count=4 iflag=direct")
        take_out(slot)  # type: ignore[operator]
        assert guest.sh(f"ls -d {DISK} {slot.sysfs}", check=False).stdout == ""
        with pytest.raises(PlugError, match="is empty"):
            slot.unplug()


def test_a_disk_with_msix_is_unplugged_and_plugged_in_again(bus: QemuBus, guest: QemuGuest) -> None:
    slot = plug_disk(bus, guest)
    assert "PCI-MSIX" in guest.sh("grep nvme0q0 /proc/interrupts").stdout
    card = slot.card
    assert isinstance(card, Nvme)
    guest.sh(f"head -c 1M /dev/urandom > /tmp/data && dd if=/tmp/data of={DISK} oflag=direct bs=1M")
    slot.unplug()
    assert guest.sh(f"ls -d {DISK} {slot.sysfs}", check=False).stdout == ""
    plug_disk(bus, guest, card)
    guest.sh(f"dd if={DISK} of=/tmp/read iflag=direct bs=1M count=1")
    assert sha256(guest, "/tmp/read") == sha256(guest, "/tmp/data")


def test_a_pulled_card_fails_its_driver_at_once_and_the_guest_bears_a_reset(
    bus: QemuBus, guest: QemuGuest
) -> None:
    slot = plug_disk(bus, guest)
    reading = guest.start(["dd", f"if={DISK}", "of=/dev/null", "bs=4k", "iflag=direct"])
    guest.sh("while [ $(cut -d' ' -f1 /sys/block/nvme0n1/stat | tr -d ' ') -lt 50 ]; do :; done",
             check=False)  # fmt: skip
    slot.pull()
    assert reading.wait(30) != 0
    assert guest.sh(f"ls -d {DISK} {slot.sysfs}", check=False).stdout == ""

    plug_disk(bus, guest)
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=1 oflag=direct")
    before = guest.sh(f"head -c 1M {DISK} | sha256sum").stdout
    guest.reset()
    assert guest.sh(f"head -c 1M {DISK} | sha256sum").stdout == before


def test_slots_that_qemu_cannot_free_are_explained(bus: QemuBus, guest: QemuGuest) -> None:
    with pytest.raises(PlugError, match=r"no slot of QEMU is free: of 8, \d had cards with MSI-X"):
        for _ in range(9):
            plug_disk(bus, guest).unplug()


def test_a_card_of_another_process_is_plugged_in(
    bus: QemuBus, guest: QemuGuest, access: Access, tmp_path: Path
) -> None:
    path = tmp_path / "card"
    with subprocess.Popen(
        [sys.executable, "-m", "softcard", "serve", "edu", "--listen", str(path)],
        stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stderr is not None
            assert "waits at" in server.stderr.readline()
            slot = bus.plug_socket(path)
            assert access(slot.sysfs, f"{LIVENESS}=0", LIVENESS) == [0xFFFFFFFF]
            with pytest.raises(PlugError, match="another process"):
                slot.pull()
            slot.unplug()
        finally:
            server.send_signal(signal.SIGTERM)
    with pytest.raises(PlugError, match="no card is served"):
        bus.plug_socket(path)
    # QEMU has its end of the connection still, and would not bear a reboot.
    guest.close()


def test_a_card_that_nobody_serves_is_a_guest_error(
    bus: QemuBus, guest: QemuGuest, tmp_path: Path
) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(tmp_path / "card"))
    with pytest.raises(GuestError, match="Connection refused"):
        bus.plug_socket(tmp_path / "card")
    bus.plug(Printer())
