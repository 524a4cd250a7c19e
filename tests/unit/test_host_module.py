"""What softcard host says of a machine, and to a user's mistakes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from softcard.bus.host.module import Build, DeviceNode, SecureBoot, State, source
from softcard.bus.host.module.dkms import STATUS
from softcard.bus.host.uapi import API
from softcard.cli.findings import Finding
from softcard.cli.host import describe
from softcard.errors import UsageError

ROOT = Path(__file__).parents[2]
KEY = Path("/var/lib/dkms/mok.pub")
OPEN = SecureBoot(on=False, lockdown="none", enforced=False, key=KEY, enrolled=None)
GOOD = State(
    release="6.12.1-amd64",
    machine="x86_64",
    supported=True,
    headers=True,
    dkms=True,
    version="1.0",
    builds=(Build("1.0", "6.12.1-amd64", "installed"),),
    loaded=True,
    api=API,
    device=DeviceNode(0o660, "root", "softcard", usable=True),
    user="ada",
    member=True,
    at_boot=True,
    secure_boot=OPEN,
)


def found(state: State, about: str) -> Finding:
    return next(finding for finding in describe(state) if finding.about == about)


def broken(state: State) -> list[str]:
    return [finding.about for finding in describe(state) if finding.good is False]


def test_all_is_well_where_all_is_there() -> None:
    assert broken(GOOD) == []


def test_each_kernel_that_the_module_is_built_for_is_named() -> None:
    builds = (*GOOD.builds, Build("1.0", "6.1.0-1-amd64", "installed"))
    said = found(replace(GOOD, builds=builds), "module installed").found
    assert said == "1.0 for Linux 6.12.1-amd64, 1.0 for Linux 6.1.0-1-amd64"


@pytest.mark.parametrize(
    "build",
    [
        Build("1.0", "6.1.0-1-amd64", "installed"),
        Build("0.9", "6.12.1-amd64", "installed"),
        Build("1.0", "6.12.1-amd64", "built"),
        Build("1.0", "", "added"),
    ],
)
def test_a_module_that_is_not_ours_for_this_kernel_is_to_be_installed(build: Build) -> None:
    finding = found(replace(GOOD, builds=(build,)), "module installed")
    assert finding.good is False
    assert "host install" in finding.mend


def test_a_module_that_is_not_loaded_is_loaded_by_modprobe() -> None:
    state = replace(GOOD, loaded=False, device=None, api=None)
    assert broken(state) == ["module loaded"]
    assert found(state, "module loaded").mend == "sudo modprobe softcard"


def test_a_module_of_another_interface_is_to_be_installed_anew() -> None:
    assert broken(replace(GOOD, api=API + 1)) == ["interface"]
    assert found(replace(GOOD, api=API + 1), "interface").found.startswith(f"version {API + 1}")


@pytest.mark.parametrize(
    ("group", "member", "mend"),
    [
        ("root", False, "host install"),
        ("softcard", True, "log in anew"),
        ("softcard", False, "usermod --append --groups softcard ada"),
    ],
)
def test_a_user_who_may_not_use_the_device_is_told_the_remedy(
    group: str, member: bool, mend: str
) -> None:
    node = DeviceNode(0o660, "root", group, usable=False)
    finding = found(replace(GOOD, device=node, member=member), "/dev/softcard")
    assert finding.good is False
    assert finding.found == f"root:{group} 0660, and ada may not use it"
    assert mend in finding.mend


def test_a_kernel_that_wants_signatures_needs_the_key_enrolled() -> None:
    locked = SecureBoot(on=True, lockdown="integrity", enforced=False, key=KEY, enrolled=False)
    state = replace(GOOD, loaded=False, device=None, api=None, secure_boot=locked)
    finding = found(state, "module signature")
    assert finding.good is False
    assert finding.needed
    assert "mokutil --import /var/lib/dkms/mok.pub" in finding.mend
    assert found(
        replace(state, secure_boot=replace(locked, enrolled=True)), "module signature"
    ).good
    unknown = found(replace(state, secure_boot=replace(locked, enrolled=None)), "module signature")
    assert unknown.good is None
    assert "mokutil --import" in unknown.mend
    assert not found(replace(state, secure_boot=replace(locked, key=None)), "module signature").good


def test_signatures_that_are_enforced_count_without_lockdown() -> None:
    assert replace(OPEN, enforced=True).wants_signature
    assert replace(OPEN, lockdown="confidentiality").wants_signature
    assert not OPEN.wants_signature


@pytest.mark.parametrize("release", ["6.1.0-13-amd64", "6.12.117+deb13-amd64", "7.0", "7.2.12"])
def test_kernels_from_6_1_to_7_2_are_supported(release: str) -> None:
    source.check_kernel(release, "x86_64")


@pytest.mark.parametrize("release", ["5.15.0-1-generic", "6.0.12", "7.3.0", "8.1", "what"])
def test_other_kernels_are_refused(release: str) -> None:
    with pytest.raises(UsageError, match=f"is for Linux 6.1 to 7.2, and this is {release}"):
        source.check_kernel(release, "x86_64")
    with pytest.raises(UsageError, match="for x86_64 alone, and this is aarch64"):
        source.check_kernel("6.12", "aarch64")


@pytest.mark.parametrize(
    ("line", "build"),
    [
        ("softcard/0.1.0, 6.12.1-amd64, x86_64: installed", ("0.1.0", "6.12.1-amd64", "installed")),
        ("softcard/0.1.0: added", ("0.1.0", None, "added")),
        ("softcard, 0.1.0, 6.1.0, x86_64: built", ("0.1.0", "6.1.0", "built")),
        (
            "softcard/0.1.0, 6.12.1, x86_64: installed (WARNING! Diff between built and installed",
            ("0.1.0", "6.12.1", "installed"),
        ),
    ],
)
def test_what_dkms_says_of_the_module_is_understood(
    line: str, build: tuple[str, str | None, str]
) -> None:
    said = STATUS.match(line)
    assert said is not None
    assert (said["version"], said["kernel"], said[3]) == build


def test_all_that_the_build_needs_is_copied_and_nothing_that_was_built(tmp_path: Path) -> None:
    source.copy_source(tmp_path / "copy")
    copied = {str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*.*")}
    assert {"main.c", "thunk.S", "softcard.h", "include/uapi/linux/softcard.h"} <= copied
    assert (tmp_path / "copy/Kbuild").exists()
    assert not [name for name in copied if name.endswith((".o", ".ko", ".mod", ".cmd"))]


def test_an_installed_package_has_the_source_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "softcard/bus/host/module"
    shutil.copytree(ROOT / "kernel", package / "kernel")
    monkeypatch.setattr(source, "__file__", str(package / "source.py"))
    assert source.source_folder() == package / "kernel"
