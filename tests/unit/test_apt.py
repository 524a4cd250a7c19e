"""Reading the machine's package sources, in both of their formats."""

from pathlib import Path

import pytest

from softcard.guest.apt import (
    AptError,
    Mirror,
    codename_of,
    debian_mirror,
    parse_deb822,
    parse_one_line,
    suites_from,
)

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
# another
Suites: bookworm-security
Components:
 main
 contrib

Types: deb
URIs: http://other.example/
Suites: bookworm
Components: main
Enabled: no
"""

ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib  # here
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg trusted=yes] http://other.example/ bookworm-security main
deb http://third.example stable stuff
deb cdrom:[Debian]/ bookworm main
"""


def test_stanzas_are_read() -> None:
    keyring = ("signed-by=/usr/share/keyrings/debian-archive-keyring.gpg",)
    assert parse_deb822(DEB822) == [
        Mirror("http://mirror.example/debian", ("bookworm", "bookworm-updates"), keyring),
        Mirror("http://mirror.example/debian-security", ("bookworm-security",), ()),
    ]


def test_a_key_within_a_stanza_is_left_to_the_keyring() -> None:
    text = "Types: deb\nURIs: http://m/\nSuites: sid\nComponents: main\nSigned-By:\n -----BEGIN\n ."
    assert parse_deb822(text) == [Mirror("http://m/", ("sid",), ())]


def test_lines_are_read() -> None:
    assert parse_one_line(ONE_LINE)[:2] == [
        Mirror("http://mirror.example/debian", ("bookworm",), ()),
        Mirror(
            "http://other.example/", ("bookworm-security",), ("signed-by=/k.gpg", "trusted=yes")
        ),
    ]


@pytest.mark.parametrize("name", ["sources.list", "sources.list.d/debian.list"])
def test_the_mirror_of_the_release_is_found_in_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(ONE_LINE)
    assert debian_mirror("bookworm", tmp_path).uri == "http://mirror.example/debian"


def test_the_mirror_of_the_release_is_found_in_stanzas(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    assert debian_mirror("bookworm", tmp_path).uri == "http://mirror.example/debian"


def test_sources_of_something_else_only_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://third.example stable stuff\n")
    with pytest.raises(AptError, match="no entry for Debian bookworm"):
        debian_mirror("bookworm", tmp_path)


def test_newer_suites_come_after_the_machines_own_and_its_backports() -> None:
    suites = suites_from("bookworm")
    assert suites[:4] == ["bookworm", "bookworm-backports", "trixie", "trixie-backports"]
    assert suites[-1] == "sid"


def test_older_releases_can_be_left_out() -> None:
    assert suites_from("bookworm", "trixie")[:2] == ["trixie", "trixie-backports"]
    assert suites_from("sid", "trixie") == ["sid"]


@pytest.mark.parametrize(
    ("text", "codename"),
    [
        ('ID=debian\nVERSION_CODENAME=bookworm\nNAME="Debian GNU/Linux"\n', "bookworm"),
        ("ID=debian\n", "sid"),
        ("ID=ubuntu\nVERSION_CODENAME=noble\n", None),
        ("ID=fedora\n", None),
    ],
)
def test_the_release_of_the_machine(tmp_path: Path, text: str, codename: str | None) -> None:
    (tmp_path / "os-release").write_text(text)
    assert codename_of(tmp_path / "os-release") == codename
