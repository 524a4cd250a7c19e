"""fio writes and verifies a disk with several processes, by each engine."""

from tests.host.inside.common import sh, wait_for

from softcard.bus.host import HostBus
from softcard.cards.nvme import Nvme
from softcard.cards.nvme.engines import ENGINES
from softcard.model.options import Size

JOBS = (
    "--bs=4k --iodepth=32 --rw=randwrite",
    "--bs=512 --iodepth=16 --rw=randwrite --size=1m",
    "--bs=12k --iodepth=16 --rw=randwrite",
    "--bs=1m --iodepth=4 --rw=write",
)

sh("modprobe nvme")
for engine in ENGINES:
    Nvme.engine = engine
    with HostBus() as bus:
        slot = bus.plug(Nvme(size=Size(64 << 20)))
        wait_for("/dev/nvme0n1")
        for job in JOBS:
            sh(
                "fio --name=verify --filename=/dev/nvme0n1 --direct=1 --ioengine=libaio "
                "--numjobs=2 --size=8m --offset_increment=16m --verify=crc32c --verify_fatal=1 "
                f"--group_reporting {job}"
            )
        assert not slot.card.functions[0].endpoint.errors
        slot.unplug()
print("verified")
