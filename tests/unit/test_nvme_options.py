from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.nvme_driver import CAP, NvmeDriver

from softcard.cards.nvme import Nvme
from softcard.errors import UsageError
from softcard.model.options import Size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": Size(0)}, "bytes"),
        ({"size": Size(1000)}, "a multiple of 512"),
        ({"size": Size("1M"), "namespaces": 0}, "1 to 32"),
        ({"size": Size("1M"), "namespaces": 33}, "1 to 32"),
        ({"size": Size("8K"), "namespaces": 3}, "larger size"),
        ({"block_size": 1024}, "512 or 4096"),
        ({"size": Size(4608), "block_size": 4096}, "a multiple of 4096"),
        ({"queues": 0}, "1 to 255"),
        ({"queues": 256}, "1 to 255"),
        ({"queue_entries": 1}, "2 to 65536"),
        ({"queue_entries": 65537}, "2 to 65536"),
        ({"max_transfer": Size("5K")}, "a power of two"),
        ({"max_transfer": Size(2048)}, "a power of two"),
        ({"serial": ""}, "1 to 20"),
        ({"serial": "x" * 21}, "1 to 20"),
        ({"serial": "Ä"}, "ASCII"),
        ({"model": "x" * 41}, "1 to 40"),
        ({"read_only": True}, "file"),
        ({"size": Size(1 << 62)}, "smaller size"),
    ],
)
def test_an_impossible_option_is_one_clear_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        Nvme(**options)
    assert "\n" not in str(raised.value)
    assert "bytes bytes" not in str(raised.value)


def test_a_refused_option_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Nvme(size=Size("1M"), file=tmp_path / "disk.img", queues=0)
    assert list(tmp_path.iterdir()) == []


def test_options_that_the_file_makes_impossible_free_it(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    with pytest.raises(UsageError, match="larger size") as kept:
        Nvme(size=Size("16K"), file=file, namespaces=8)
    Nvme(file=file).close()
    assert kept


@pytest.mark.parametrize(
    ("size", "made", "expected"),
    [
        (None, None, 1 << 30),
        (None, 3 << 20, 3 << 20),
        ("2M", None, 2 << 20),
        ("2M", 3 << 20, 2 << 20),
    ],
)
def test_the_size_is_the_option_or_the_file_or_a_gibibyte(
    tmp_path: Path, size: str | None, made: int | None, expected: int
) -> None:
    file = tmp_path / "disk.img"
    if made:
        file.write_bytes(bytes(made))
    driver = NvmeDriver(Nvme(size=Size(size) if size else None, file=file))
    assert int.from_bytes(driver.identify(1)[280:296], "little") == expected
    driver.close()


@pytest.mark.parametrize("contents", [b"x" * 1000, b"x" * (1 << 20)])
def test_a_truncated_file_is_refused_and_kept(tmp_path: Path, contents: bytes) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(contents)
    with pytest.raises(UsageError, match="truncated"):
        Nvme(size=Size("2M") if len(contents) > 1000 else None, file=file)
    assert file.read_bytes() == contents


def test_two_processes_cannot_have_one_file(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    card = Nvme(size=Size("1M"), file=file)
    script = (
        "import sys, pathlib; from softcard.cards.nvme import Nvme;"
        "Nvme(file=pathlib.Path(sys.argv[1]))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(file)], check=False, capture_output=True, text=True
    )
    assert process.returncode
    assert "in use by another card" in process.stderr
    card.close()


def test_the_same_file_is_the_same_disk(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        driver = NvmeDriver(Nvme(size=Size("1M"), file=tmp_path / "disk.img"))
        names.append((driver.identify(1)[4:24], driver.identify(0, 1)[104:128]))
        driver.close()
    assert names[0] == names[1]


@pytest.mark.parametrize("queues", [1, 3, 31, 64, 255])
def test_every_queue_has_a_vector(queues: int) -> None:
    driver = NvmeDriver(Nvme(size=Size("1M"), queues=queues, queue_entries=2), entries=4)
    assert driver.set_feature(7, 0x00FE00FE) == (queues - 1) * 0x10001
    at = driver.device.find_capability(0x11)
    assert driver.device.config_read(at + 2, 2) & 0x7FF == queues
    driver.create_queue(queues, entries=2)
    driver.device.take_interrupts()
    driver.ok(0x00, queues, nsid=1)
    assert driver.device.take_interrupts() == [queues]
    driver.close()


def test_the_largest_queue_and_transfer_are_options() -> None:
    card = Nvme(size=Size("8M"), queue_entries=65536, max_transfer=Size("4K"))
    driver = NvmeDriver(card)
    assert driver.device.read(0, CAP, 2) == 0xFFFF
    assert driver.identify(1)[77] == 0
    queue = driver.create_queue(entries=65536)
    for _ in range(3):
        driver.push(0x00, 1, nsid=1)
    assert len(driver.reap(1)) == 3
    assert queue.tail == 3
    driver.close()


def test_every_option_is_described() -> None:
    documented = inspect.getdoc(Nvme) or ""
    for name in inspect.signature(Nvme).parameters:
        assert re.search(rf"^    {name}: ", documented, re.MULTILINE), name
