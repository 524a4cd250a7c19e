"""Where Linux comes from: the setting, and what goes wrong with each kind of source."""

import hashlib
import tarfile
from pathlib import Path

import pytest

from softcard.errors import UsageError
from softcard.guest.kernel.errors import KernelError
from softcard.guest.kernel.source import (
    SETTING,
    DebianPackage,
    Download,
    LocalTarball,
    LocalTree,
    source_from,
)


def nothing(step: str, done: float) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "linux-7.2"
    for name in ("arch/um/Makefile", "arch/x86/um/a.c", "arch/arm/kernel/a.c", "Makefile", "b.o"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


@pytest.fixture
def tarball(tree: Path, tmp_path: Path) -> Path:
    path = tmp_path / "linux-7.2.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree, "linux-7.2")
    return path


def test_debian_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    assert source_from(None).identity == "debian linux-source-7.2"


def test_the_environment_names_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "debian:linux-source-7.3")
    assert source_from(None).identity == "debian linux-source-7.3"


def test_an_argument_outweighs_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "/nonexistent")
    assert isinstance(source_from("debian"), DebianPackage)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("/nonexistent/linux", "neither debian nor an address nor a file"),
        ("https://example.org/linux.tar.xz", "no checksum"),
        ("https://example.org/linux.tar.xz#sha256=abc", "no checksum"),
        ("debian:vim", "no kernel source package"),
    ],
)
def test_a_source_that_is_none_is_the_users_mistake(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        source_from(setting)


def test_a_folder_without_linux_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Linux source tree"):
        source_from(str(tmp_path))


def test_a_tarball_is_unpacked_without_what_is_not_needed(tarball: Path, tmp_path: Path) -> None:
    source = source_from(str(tarball))
    assert isinstance(source, LocalTarball)
    source.unpack(tmp_path / "out", tmp_path, nothing)
    assert (tmp_path / "out" / "arch" / "x86" / "um" / "a.c").exists()
    assert not (tmp_path / "out" / "arch" / "arm" / "kernel" / "a.c").exists()


def test_a_tarball_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "a", "a")
    with pytest.raises(KernelError, match="holds no Linux source"):
        source_from(str(path)).unpack(tmp_path / "out", tmp_path, nothing)


def test_a_broken_tarball_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "linux.tar.xz"
    path.write_bytes(b"this is no archive")
    with pytest.raises(KernelError, match=r"linux\.tar\.xz cannot be unpacked") as caught:
        source_from(str(path)).unpack(tmp_path / "out", tmp_path, nothing)
    assert "\n" not in str(caught.value)


def test_a_tarball_is_another_source_when_it_has_changed(tarball: Path) -> None:
    before = source_from(str(tarball)).identity
    tarball.write_bytes(tarball.read_bytes() + b"\0")
    assert source_from(str(tarball)).identity != before


def test_a_tree_is_copied_without_objects_and_left_alone(tree: Path, tmp_path: Path) -> None:
    (tree / ".config").write_text("CONFIG_OTHER=y")
    source = source_from(str(tree))
    assert isinstance(source, LocalTree)
    source.unpack(tmp_path / "out", tmp_path, nothing)
    assert (tmp_path / "out" / "arch" / "um" / "Makefile").exists()
    assert not (tmp_path / "out" / "b.o").exists()
    assert not (tmp_path / "out" / ".config").exists()
    assert (tree / ".config").exists()


def test_a_download_is_checked_and_kept(tarball: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    source = source_from(f"file://{tarball}#sha256={digest}")
    assert isinstance(source, Download)
    source.unpack(tmp_path / "out", tmp_path, nothing)
    tarball.unlink()
    source.unpack(tmp_path / "again", tmp_path, nothing)
    assert (tmp_path / "again" / "Makefile").exists()


def test_a_download_with_another_checksum_is_refused(tarball: Path, tmp_path: Path) -> None:
    source = source_from(f"file://{tarball}#sha256={'0' * 64}")
    with pytest.raises(KernelError, match="not what was expected"):
        source.unpack(tmp_path / "out", tmp_path, nothing)
    assert list(tmp_path.glob("*.partial")) == []


def test_an_address_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    source = source_from(f"http://127.0.0.1:9/linux.tar.xz#sha256={'0' * 64}")
    with pytest.raises(KernelError, match="cannot be fetched"):
        source.unpack(tmp_path / "out", tmp_path, nothing)
