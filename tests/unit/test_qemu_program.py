"""Which QEMU is taken; QEMUs are scripts here."""

from __future__ import annotations

from pathlib import Path

import pytest

from softcard.guest.qemu import QemuError, program
from softcard.guest.qemu.machine import address, device_arguments
from softcard.guest.qemu.program import find_qemu, is_new_enough, need_qemu

GOOD = "echo 'vfio-user-pci options:'; echo '  socket=<SocketAddress>'"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(program, "NAME", "qemu-of-a-test")
    return tmp_path / "qemu-of-a-test"


def make_qemu(path: Path, version: str, device_help: str = GOOD) -> None:
    path.write_text(
        "#!/bin/sh\n"
        f'case $1 in --version) echo "QEMU emulator version {version} (Debian 1:{version})" ;;\n'
        f"-device) {device_help} ;; esac\n"
    )
    path.chmod(0o755)


def test_the_machines_own_is_taken_where_it_is_new_enough(path: Path) -> None:
    make_qemu(path, "10.1.2")
    qemu = find_qemu()
    assert qemu is not None
    assert (qemu.command, qemu.version, qemu.folder) == ((str(path),), "10.1.2", None)


def test_one_that_is_too_old_is_named_with_the_remedy(path: Path) -> None:
    make_qemu(path, "7.2.19")
    assert find_qemu() is None
    with pytest.raises(QemuError, match=r"is QEMU 7\.2\.19, .* 10\.1 or newer: softcard qemu get"):
        need_qemu()


def test_one_without_the_client_is_named(path: Path) -> None:
    make_qemu(path, "11.0.0", "exit 1")
    with pytest.raises(QemuError, match="built without vfio-user-pci: softcard qemu get"):
        need_qemu()


def test_one_that_does_not_start_is_named(path: Path) -> None:
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    with pytest.raises(QemuError, match="does not start: softcard qemu get"):
        need_qemu()


def test_none_at_all_is_one_sentence(path: Path) -> None:
    with pytest.raises(QemuError, match=r"there is no qemu-of-a-test here: softcard qemu get"):
        need_qemu()


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("1:11.1.3+ds-1~bpo13+1", True),
        ("10.1", True),
        ("10.0.13", False),
        ("1:7.2+dfsg-7+deb12u18", False),
        ("9.2.50", False),
        ("unknown", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, good: bool) -> None:
    assert is_new_enough(version) is good


def test_function_0_of_a_card_comes_last() -> None:
    devices = device_arguments(3, [Path("/a"), Path("/a.1")], 4.0)
    assert [(d["addr"], d["multifunction"], d["bus"]) for d in devices] == [
        ("0.1", False, "slot3"),
        ("0.0", True, "slot3"),
    ]
    assert address(3, 1) == "0000:04:00.1"


def test_qemu_is_more_patient_than_the_server() -> None:
    (device,) = device_arguments(0, [Path("/a")], 4.0)
    assert device["x-msg-timeout"] == 9000
    (device,) = device_arguments(0, [Path("/a")], 0)
    assert device["x-msg-timeout"] == 10**9
