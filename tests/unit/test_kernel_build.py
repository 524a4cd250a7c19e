"""Building: what is looked at first, what is said when it fails, and who may build at a time."""

import threading
from pathlib import Path

import pytest

from softcard.errors import UsageError
from softcard.guest.kernel import KernelError, build_module, ensure_kernel, find_kernel
from softcard.guest.kernel import kernel as kernels
from softcard.guest.kernel.build import first_error, run_logged
from softcard.guest.kernel.cache import cache_folder, clean, lock
from softcard.guest.kernel.tools import PACKAGES, check_tools, missing_packages

MANIFEST: dict[str, str | int] = {
    "release": "7.2.0-test",
    "source": "a test",
    "flavour": "default",
    "recipe": "",
    "objects": 1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cache_folder()
    folder.mkdir(parents=True)
    return folder


def test_what_is_missing_is_named_with_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in PACKAGES:
        if program not in ("flex", "bc", "gcc"):
            (tmp_path / program).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match=r"gcc, flex, bc.*sudo apt-get install bc flex gcc$"):
        check_tools()


def test_nothing_is_said_to_be_missing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packages = missing_packages()
    assert packages == sorted(set(packages))


def test_missing_headers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in PACKAGES:
        (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match=r"headers.*libc6-dev"):
        check_tools()


def test_there_is_no_kernel_before_one_was_built() -> None:
    assert find_kernel("debug") is None


def test_a_folder_name_that_make_cannot_bear_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        ensure_kernel(flavour="debug")


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(KernelError, match="XDG_CACHE_HOME"):
        ensure_kernel(flavour="debug")


def test_the_second_builder_waits_and_says_for_whom(cache: Path) -> None:
    said: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with lock(cache / "x.lock", said.append):
            entered.set()

    with lock(cache / "x.lock", said.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.1)
    thread.join(5)
    assert entered.is_set()
    assert len(said) == 1
    assert "is building this kernel" in said[0]


def test_nothing_is_removed_under_a_builder(cache: Path) -> None:
    with lock(cache / "x.lock", print), pytest.raises(KernelError, match="is building"):
        clean()
    assert (cache / "x.lock").exists()


def test_what_is_out_of_date_is_removed_and_the_rest_is_kept(cache: Path) -> None:
    for name in ("old", "new", ".new-leftover"):
        (cache / name).mkdir()
        (cache / name / "linux").write_bytes(bytes(8192))
    assert clean([cache / "new"]) >= 2 * 8192
    assert [path.name for path in cache.iterdir()] == ["new"]


def test_a_kernel_is_what_its_manifest_says(tmp_path: Path) -> None:
    kernels.write_manifest(tmp_path, MANIFEST)
    kernel = kernels.load(tmp_path)
    assert kernel is not None
    assert (kernel.release, kernel.image) == ("7.2.0-test", tmp_path / "linux")
    assert kernel.modules is None
    assert kernel.build_tree is None


def test_a_command_of_the_build_is_logged_and_its_end_returned(tmp_path: Path) -> None:
    written: list[str] = []
    status, tail = run_logged(["sh", "-c", "echo one; echo two >&2; exit 3"], tmp_path,
                              written.append)  # fmt: skip
    assert status == 3
    assert "".join(written) == "one\ntwo\n"
    assert tail[-2:] == ["one", "two"]


def test_what_another_kernel_has_left_in_the_environment_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ARCH", "KBUILD_OUTPUT", "MAKEFLAGS", "CROSS_COMPILE"):
        monkeypatch.setenv(name, "wrong")
    written: list[str] = []
    run_logged(["sh", "-c", "env"], tmp_path, written.append)
    assert "wrong" not in "".join(written)


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (["  CC a.o", "a.c:1:2: error: no", "make: *** [a.o] Error 1"], "a.c:1:2: error: no"),
        (["Kconfig:3: can't open file", "make: *** [x] Error 1"], "Kconfig:3: can't open file"),
        (["ld: undefined reference to `x'", "make: *** x"], "ld: undefined reference to `x'"),
        (["  CC lib/error.o", "it was killed"], "it was killed"),
    ],
)
def test_the_first_complaint_is_what_is_told(lines: list[str], first: str) -> None:
    assert first_error(lines) == first


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "neither Kbuild nor Makefile"),
        ({"Makefile": "all:\n\ttrue\n"}, "names no module"),
    ],
)
def test_a_folder_without_a_module_is_the_users_mistake(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    kernels.write_manifest(tmp_path, MANIFEST)
    kernel = kernels.load(tmp_path)
    assert kernel is not None
    folder = tmp_path / "module"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        build_module(kernel, folder)


def test_a_kernel_without_headers_cannot_build_modules(tmp_path: Path) -> None:
    kernels.write_manifest(tmp_path, MANIFEST)
    kernel = kernels.load(tmp_path)
    assert kernel is not None
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "Kbuild").write_text("obj-m := a.o\n")
    with pytest.raises(KernelError, match="without the headers"):
        build_module(kernel, folder)
