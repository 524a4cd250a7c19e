"""The NVMe card under Linux's own driver: file systems, verification, nvme-cli, and pulling it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.uml.conftest import wait_for_disk
from tests.uml.resources import assert_no_growth, resources

from softcard.bus.uml import UmlBus, UmlSlot
from softcard.cards.nvme import Nvme
from softcard.guest.uml import UmlGuest
from softcard.model.options import Size

DISK, CONTROLLER = "/dev/nvme0n1", "/dev/nvme0"


def plug(guest: UmlGuest, card: Nvme) -> UmlSlot:
    slot = guest.bus.plug(card)
    wait_for_disk(guest)
    return slot


@pytest.fixture
def disk(guest: UmlGuest) -> UmlSlot:
    """A disk in memory, in the guest."""
    return plug(guest, Nvme(size=Size("512M")))


def nvme(guest: UmlGuest, *words: str) -> Any:
    """What an nvme-cli command says, as JSON."""
    return json.loads(guest.run(["nvme", *words, "-o", "json"]).stdout)


# File systems.


@pytest.mark.parametrize(
    ("make", "check"),
    [
        ("mkfs.ext4 -q", "e2fsck -fn"),
        ("mkfs.xfs -q", "xfs_repair -n"),
        ("mkfs.btrfs -q", "btrfs check"),
    ],
    ids=["ext4", "xfs", "btrfs"],
)
@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_file_system_holds_what_was_written(
    guest: UmlGuest, make: str, check: str, block_size: int
) -> None:
    plug(guest, Nvme(size=Size("512M"), block_size=512 if block_size == 512 else 4096))
    guest.sh(f"{make} {DISK}; mkdir /tmp/m; mount -o discard {DISK} /tmp/m")
    guest.sh("cp -r /usr/include/linux /tmp/m/; seq 1 1000000 > /tmp/m/numbers")
    guest.sh("cd /tmp/m; find . -type f | sort | xargs sha256sum > /tmp/before")
    guest.sh(f"umount /tmp/m; {check} {DISK}; mount -o discard {DISK} /tmp/m")
    guest.sh("cd /tmp/m; sha256sum --quiet -c /tmp/before")
    guest.sh(f"rm -rf /tmp/m/linux; fstrim /tmp/m; umount /tmp/m; {check} {DISK}")


def test_badblocks_finds_none(guest: UmlGuest) -> None:
    plug(guest, Nvme(size=Size("64M")))
    result = guest.run(["badblocks", "-wsv", "-b", "4096", DISK], timeout=100)
    assert "0 bad blocks found. (0/0/0 errors)" in result.stderr


@pytest.mark.parametrize("pattern", ["randwrite", "write", "randrw"])
def test_fio_reads_back_what_it_wrote(guest: UmlGuest, disk: UmlSlot, pattern: str) -> None:
    guest.run(
        ["fio", "--name=verify", f"--filename={DISK}", "--direct=1", "--ioengine=libaio",
         f"--rw={pattern}", "--bsrange=512-256k", "--bs_unaligned=0", "--blockalign=512",
         "--iodepth=16", "--size=64M", "--verify=crc32c", "--verify_fatal=1",
         "--verify_backlog=256"],
        timeout=100,
    )  # fmt: skip


def test_discarded_blocks_read_as_zero_and_free_memory(guest: UmlGuest, disk: UmlSlot) -> None:
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=64 oflag=direct")
    guest.sh(f"blkdiscard -o 1M -l 62M {DISK}")
    guest.sh(f"cmp -n {62 << 20} -i {1 << 20}:0 {DISK} /dev/zero")
    assert guest.sh(f"cmp -n {1 << 20} {DISK} /dev/zero", check=False).status == 1


# nvme-cli.


def test_nvme_cli_identifies_the_controller(guest: UmlGuest) -> None:
    plug(guest, Nvme(size=Size("64M"), serial="S0FT", model="a model"))
    controller = nvme(guest, "id-ctrl", CONTROLLER)
    assert controller["vid"] == 0x1DED
    assert controller["sn"].strip() == "S0FT"
    assert controller["mn"].strip() == "a model"
    assert controller["ver"] == 0x10400
    (listed,) = nvme(guest, "list")["Devices"]
    assert listed["DevicePath"] == DISK
    assert listed["PhysicalSize"] == 64 << 20


def test_nvme_cli_identifies_the_namespace(guest: UmlGuest, disk: UmlSlot) -> None:
    namespace = nvme(guest, "id-ns", DISK)
    assert namespace["nsze"] == namespace["ncap"] == (512 << 20) // 512
    assert {1 << lbaf["ds"] for lbaf in namespace["lbafs"]} == {512, 4096}


def test_the_smart_log_counts_what_was_done(guest: UmlGuest, disk: UmlSlot) -> None:
    before = nvme(guest, "smart-log", CONTROLLER)
    guest.sh(f"dd if={DISK} of=/dev/null bs=64k count=160 iflag=direct")
    guest.sh(f"dd if=/dev/zero of={DISK} bs=64k count=80 oflag=direct")
    after = nvme(guest, "smart-log", CONTROLLER)
    grown = {name: int(after[name]) - int(before[name]) for name in after}
    assert after["critical_warning"] == 0
    # Whoever has the disk open may read a little more: for a partition table, for example.
    assert 160 <= grown["host_read_commands"] < 200
    assert grown["host_write_commands"] == 80
    # A data unit is a thousand blocks of 512 bytes, begun ones counted.
    assert grown["data_units_read"] in (20, 21, 22)
    assert grown["data_units_written"] in (10, 11)


def test_a_command_that_fails_is_in_the_error_log(guest: UmlGuest, disk: UmlSlot) -> None:
    failed = guest.run(
        ["nvme", "read", DISK, "--start-block=99999999", "--block-count=0", "--data-size=512"],
        check=False,
    )
    assert failed.status != 0
    assert "LBA Out of Range" in failed.stdout + failed.stderr
    newest = nvme(guest, "error-log", CONTROLLER, "-e", "1")["errors"][0]
    assert newest["error_count"] == 1
    assert newest["lba"] == 99999999


def test_the_subsystem_lists_its_controller(guest: UmlGuest, disk: UmlSlot) -> None:
    text = json.dumps(nvme(guest, "list-subsys"))
    assert "nqn." in text
    assert "nvme0" in text
    assert '"live"' in text


# Error recovery, 5, is a feature of each namespace.
@pytest.mark.parametrize(
    ("device", "feature"), [(DISK, 5), *((CONTROLLER, number) for number in (1, 2, 4, 6, 7, 8, 11))]
)
def test_features_can_be_read(guest: UmlGuest, disk: UmlSlot, device: str, feature: int) -> None:
    for select in ("0", "1", "2", "3"):
        said = guest.run(["nvme", "get-feature", device, "-f", str(feature), "-s", select, "-H"])
        assert "get-feature" in said.stdout


def test_a_feature_can_be_set(guest: UmlGuest, disk: UmlSlot) -> None:
    for value in (0, 1):
        guest.run(["nvme", "set-feature", CONTROLLER, "--feature-id=6", f"--value={value}"])
        said = guest.run(["nvme", "get-feature", CONTROLLER, "-f", "6"]).stdout
        assert int(said.rsplit(":", 1)[1], 16) == value


@pytest.mark.parametrize("erase", ["0", "1"])
def test_format_changes_the_block_size_and_erases(
    guest: UmlGuest, disk: UmlSlot, erase: str
) -> None:
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=4 oflag=direct")
    formats = nvme(guest, "id-ns", DISK)["lbafs"]
    wanted = next(number for number, lbaf in enumerate(formats) if lbaf["ds"] == 12)
    guest.run(["nvme", "format", DISK, f"--lbaf={wanted}", f"--ses={erase}", "--force"])
    guest.sh("until [ $(cat /sys/block/nvme0n1/queue/logical_block_size) = 4096 ]; do :; done")
    guest.sh(f"cmp -n {4 << 20} {DISK} /dev/zero")
    guest.sh(f"mkfs.ext4 -q {DISK}; e2fsck -fn {DISK}")


def test_a_reset_loses_nothing(guest: UmlGuest, disk: UmlSlot) -> None:
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=8 oflag=direct")
    before = guest.sh(f"dd if={DISK} bs=1M count=8 iflag=direct | sha256sum").stdout
    for _ in range(3):
        guest.run(["nvme", "reset", CONTROLLER])
        assert guest.sh(f"dd if={DISK} bs=1M count=8 iflag=direct | sha256sum").stdout == before


def test_a_reset_under_load_is_survived(guest: UmlGuest, disk: UmlSlot) -> None:
    load = guest.start(
        ["fio", "--name=load", f"--filename={DISK}", "--direct=1", "--ioengine=libaio",
         "--rw=randrw", "--bs=4k", "--iodepth=32", "--size=64M", "--verify=crc32c",
         "--verify_fatal=1", "--time_based", "--runtime=3"]
    )  # fmt: skip
    for _ in range(5):
        wait_for_load(guest)
        guest.run(["nvme", "reset", CONTROLLER])
    assert load.wait(60) == 0


def test_a_function_level_reset_by_the_kernel_is_survived(guest: UmlGuest, disk: UmlSlot) -> None:
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=8 oflag=direct")
    before = guest.sh(f"dd if={DISK} bs=1M count=8 iflag=direct | sha256sum").stdout
    guest.write_file(f"{disk.sysfs}/reset", "1")
    assert guest.sh(f"dd if={DISK} bs=1M count=8 iflag=direct | sha256sum").stdout == before


def test_namespaces_are_created_and_deleted(guest: UmlGuest, disk: UmlSlot) -> None:
    guest.run(["nvme", "delete-ns", CONTROLLER, "-n", "1"])
    guest.wait_for_path(DISK, exists=False)
    for number, blocks in ((1, 131072), (2, 65536)):
        guest.run(
            ["nvme", "create-ns", CONTROLLER, f"-s{blocks}", f"-c{blocks}", "-f0", "-d0", "-m0"]
        )
        guest.run(["nvme", "attach-ns", CONTROLLER, f"-n{number}", "-c0"])
        guest.sh(f"nvme ns-rescan {CONTROLLER}")
        wait_for_disk(guest, f"{CONTROLLER}n{number}")
    guest.sh(f"mkfs.ext4 -q {CONTROLLER}n2; e2fsck -fn {CONTROLLER}n2")
    assert guest.sh("cat /sys/block/nvme0n2/size").stdout == "65536\n"
    guest.run(["nvme", "delete-ns", CONTROLLER, "-n", "2"])
    guest.wait_for_path(f"{CONTROLLER}n2", exists=False)
    guest.sh(f"dd if={DISK} of=/dev/null count=1")


def test_several_namespaces_are_several_disks(guest: UmlGuest) -> None:
    guest.bus.plug(Nvme(size=Size("64M"), namespaces=3))
    for number in (1, 2, 3):
        wait_for_disk(guest, f"{CONTROLLER}n{number}")
        target = f"of={CONTROLLER}n{number} bs=64k count=16 iflag=fullblock oflag=direct"
        guest.sh(f"yes {number} | dd {target}")
    for number in (1, 2, 3):
        assert guest.sh(f"head -c 4 {CONTROLLER}n{number}").stdout == f"{number}\n" * 2


# The file backend.


def test_a_file_keeps_the_data_from_one_guest_to_the_next(
    guest: UmlGuest, uml_bus: UmlBus, tmp_path: Path
) -> None:
    file = tmp_path / "disk"
    slot = plug(guest, Nvme(size=Size("256M"), file=file))
    guest.sh(f"mkfs.ext4 -q {DISK}; mkdir /tmp/m; mount {DISK} /tmp/m; seq 1 1000 > /tmp/m/file")
    guest.sh("umount /tmp/m")
    slot.unplug()
    assert file.stat().st_blocks * 512 < 64 << 20
    with UmlBus() as bus, UmlGuest(bus) as other:
        plug(other, Nvme(file=file))
        other.sh(f"mkdir /tmp/m; mount {DISK} /tmp/m")
        assert other.sh("tail -1 /tmp/m/file").stdout == "1000\n"


def test_discards_punch_holes_in_the_file(guest: UmlGuest, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    plug(guest, Nvme(size=Size("64M"), file=file))
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M oflag=direct", check=False)
    full = file.stat().st_blocks
    guest.run(["blkdiscard", DISK])
    assert file.stat().st_blocks < full / 10


# Coming and going.


def wait_for_load(guest: UmlGuest) -> None:
    """Wait until many more commands have ended than had now."""
    guest.sh(
        "count() { awk '{ print $1 + $5 }' /sys/block/nvme0n1/stat; }; "
        "enough=$(( $(count) + 200 )); until [ $(count) -gt $enough ]; do :; done"
    )


LOAD = [
    "fio", "--name=load", f"--filename={DISK}", "--direct=1", "--ioengine=libaio", "--rw=randrw",
    "--bs=4k", "--iodepth=16", "--time_based", "--runtime=1000", "--eta=never", "--thread",
]  # fmt: skip


def fill(guest: UmlGuest) -> None:
    """Write every block, so that a disk in memory has taken all its memory."""
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M oflag=direct", check=False)


def test_a_disk_that_is_pulled_under_fio_a_hundred_times(guest: UmlGuest, uml_bus: UmlBus) -> None:
    card = Nvme(size=Size("16M"))
    filled = plug(guest, card)
    fill(guest)
    filled.unplug()

    def cycles(count: int) -> None:
        for _ in range(count):
            slot = plug(guest, card)
            load = guest.start(LOAD)
            wait_for_load(guest)
            slot.pull()
            # At once: the driver's own time-out is 30 seconds.
            assert load.wait(20) != 0
            guest.wait_for_path(DISK, exists=False)

    cycles(20)
    before = resources(guest)
    cycles(100)
    assert_no_growth(before, resources(guest))


def test_a_disk_that_is_unplugged_a_hundred_times(guest: UmlGuest, uml_bus: UmlBus) -> None:
    card = Nvme(size=Size("16M"))

    def cycles(count: int) -> None:
        for _ in range(count):
            plug(guest, card).unplug()
            guest.wait_for_path(DISK, exists=False)

    cycles(10)
    before = resources(guest)
    cycles(100)
    assert_no_growth(before, resources(guest))


def test_a_disk_can_be_unplugged_under_load(guest: UmlGuest, disk: UmlSlot) -> None:
    load = guest.start(LOAD)
    wait_for_load(guest)
    disk.unplug()
    assert load.wait(20) != 0
    guest.wait_for_path(DISK, exists=False)
