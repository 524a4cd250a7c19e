"""The machine's own nvme driver: a file system, checksums, fio's own verification."""

from tests.host.inside.common import sh, wait_for

from softcard.bus.host import HostBus
from softcard.cards.nvme import Nvme
from softcard.model.options import Size

with HostBus() as bus:
    slot = bus.plug(Nvme(size=Size(256 << 20)))
    sh("modprobe nvme; modprobe ext4")
    wait_for("/dev/nvme0n1")
    sh("mkfs.ext4 -q /dev/nvme0n1; mkdir -p /tmp/disk; mount /dev/nvme0n1 /tmp/disk")
    sh("dd if=/dev/urandom of=/tmp/disk/file bs=1M count=16 status=none")
    before = sh("sha256sum /tmp/disk/file")
    sh("umount /tmp/disk; echo 3 > /proc/sys/vm/drop_caches; mount /dev/nvme0n1 /tmp/disk")
    assert sh("sha256sum /tmp/disk/file") == before
    sh("umount /tmp/disk; e2fsck -fn /dev/nvme0n1")
    print(sh("grep -c softcard-.*nvme0q /proc/interrupts").strip(), "vectors")
    slot.unplug()
    assert "nvme0n1" not in sh("lsblk")
