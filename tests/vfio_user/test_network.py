"""A card on another host: NVMe over TLS between two network namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vfio_user.network import FAR, NEAR, Wire, inside

from softcard.wire.certificates import make_certificates

PORT = 4711
TIMEOUT = 60.0
WAIT_FOR_DISK = (
    "disk() { for i in $(seq 600); do test $1 -b /dev/nvme0n1 && return; sleep 0.05; done; "
    "exit 9; };"
)
FIO = (
    "fio --name=v --filename=/dev/nvme0n1 --ioengine=libaio --direct=1 --size=48M --iodepth=16 "
    "--verify=crc32c --verify_fatal=1 --output-format=terse >/dev/null"
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's")


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire(f"softcard-{os.getpid()}")
    try:
        wire.make()
        yield wire
    finally:
        wire.remove()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network") / "keys"
    make_certificates(folder, [FAR, "127.0.0.1"])
    return folder


class Served:
    """softcard serve at the far end."""

    def __init__(self, wire: Wire, keys: Path, log: Path, card: tuple[str, ...]) -> None:
        self._command = inside(
            wire.far, sys.executable, "-m", "softcard", "serve", *card,
            "--listen", f"tls://0.0.0.0:{PORT}", "--tls", str(keys / "server"),
        )  # fmt: skip
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_for(self._log, "waits at")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while text not in file.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in: {file.read_text()}"
        time.sleep(0.05)


@pytest.fixture
def served(wire: Wire, keys: Path, tmp_path: Path) -> Iterator[Served]:
    served = Served(wire, keys, tmp_path / "server", ("nvme", "--size", "64M"))
    yield served
    served.kill()


def run(wire: Wire, keys: Path, host: str, script: str, log: Path) -> subprocess.Popen[str]:
    with log.open("w") as output:
        return subprocess.Popen(
            inside(
                wire.near, sys.executable, "-m", "softcard", "run", f"tls://{host}:{PORT}",
                "--tls", str(keys / "client"), "-v", "--", "sh", "-c", f"{WAIT_FOR_DISK} {script}",
            ),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True,
        )  # fmt: skip


def assert_clean(log: Path) -> None:
    text = log.read_text()
    for sign in ("WARNING:", "BUG:", "Oops", "possible circular locking"):
        assert sign not in text, text


@pytest.mark.parametrize("delay", [0.0, 0.001])
def test_data_survives_the_way(
    wire: Wire, served: Served, keys: Path, tmp_path: Path, delay: float
) -> None:
    log = tmp_path / "log"
    script = f"disk; {FIO} --rw=write --bs=1M && {FIO} --rw=randrw --bs=4k --io_size=6M"
    with wire.longer(delay, PORT) as host:
        assert run(wire, keys, host, script, log).wait(TIMEOUT) == 0, log.read_text()
    assert_clean(log)


def test_a_server_that_dies_is_a_pulled_card_and_one_that_returns_a_plugged_one(
    wire: Wire, served: Served, keys: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = (
        "disk; echo disk is there; "
        # The node may be gone when dd opens it, and must not become a file.
        "dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=10000000 oflag=direct conv=nocreat; "
        f"disk !; echo gone; disk; {FIO} --rw=randwrite --bs=4k --io_size=4M && echo back"
    )
    process = run(wire, keys, FAR, script, log)
    wait_for(log, "disk is there")
    served.kill()
    wait_for(log, "the card was pulled")
    served.start()
    assert process.wait(TIMEOUT) == 0, log.read_text()
    text = log.read_text()
    assert text.index("gone") < text.index("is there again") < text.index("back\n")
    assert_clean(log)


def test_a_cable_that_is_pulled_is_a_pulled_card(
    wire: Wire, served: Served, keys: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = "disk; echo disk is there; disk !; disk; lsblk /dev/nvme0n1"
    process = run(wire, keys, FAR, script, log)
    wait_for(log, "disk is there")
    wire.cut()
    wait_for(log, "the card was pulled")
    wire.mend()
    assert process.wait(TIMEOUT) == 0, log.read_text()
    assert_clean(log)


def test_a_stranger_gets_one_sentence(
    wire: Wire, served: Served, keys: Path, tmp_path: Path
) -> None:
    make_certificates(tmp_path / "other", [FAR, NEAR])
    log = tmp_path / "log"
    assert run(wire, tmp_path / "other", FAR, "true", log).wait(TIMEOUT) == 1
    text = log.read_text()
    assert text.startswith(f"softcard: the certificate that tls://{FAR}:{PORT} shows cannot be")
    assert text.count("\n") == 1
