"""What the command line says to a user's mistakes, and the status it ends with."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from softcard.cli import COMMANDS, main

CARD = """
from softcard import Bar, Card, Register

class Printer(Card):
    vendor_id, device_id = 0x1DED, 0x0001

    class bar0(Bar, size=4096):
        message = Register(0x00)
"""


@dataclass(frozen=True)
class Said:
    """What a run of the command line has given."""

    status: int
    out: str
    err: str


class CommandLine:
    """Runs the command line in this process, in a folder of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Said:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        said = self._capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Said(end.value.code, said.out, said.err)


@pytest.fixture
def softcard(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return CommandLine(capsys)


def test_help_lists_every_command(softcard: CommandLine) -> None:
    said = softcard("--help")
    assert said.status == 0
    for command in COMMANDS:
        assert f"\n  {command} " in said.out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(softcard: CommandLine, command: str) -> None:
    said = softcard(command, "--help")
    assert said.status == 0
    assert said.out.startswith(f"Usage: softcard {command}")


def test_help_of_a_card_shows_its_options(softcard: CommandLine) -> None:
    said = softcard("run", "nvme", "--help")
    assert said.status == 0
    assert "Options of Nvme:" in said.out
    assert "--block-size [512|4096]" in said.out


def test_help_imports_nothing_that_is_slow() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "softcard", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "softcard.cli" in imported
    slow = {"rich", "watchfiles", "softcard.cards", "softcard.guest", "softcard.bus"}
    assert not slow & imported


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], "which card? Give a Python file"),
        (["run", "nvm"], "there is no card nvm (did you mean nvme?)"),
        (["run", "gone.py"], "gone.py does not exist: name the Python file"),
        (["run", "./"], "./ is a folder: name the Python file"),
        (["run", "card.py:Prnter"], "card.py has no class Prnter (did you mean Printer?)"),
        (["run", "card.py:Register"], "Register in card.py is no card"),
        (["run", "empty.py"], "empty.py has no card: a card is a class derived from softcard.Card"),
        (["run", "two.py"], "two.py has 2 cards (One, Two): name one, as in two.py:One"),
        (["run", "nvme", "--sizze", "1G"], "Nvme has no option --sizze (did you mean --size?)"),
        (["run", "card.py", "--x"], "Printer has no option --x; the card has none"),
        (["run", "nvme", "--size", "1X"], "size '1X' is not a number of bytes"),
        (["run", "nvme", "--namespaces", "99"], "99 namespaces: choose 1 to 32"),
        (["run", "--shel"], "there is no option --shel (did you mean --shell?)"),
        (["run", "card.py", "ls"], "what is ls? To run a command in the guest, put -- before it"),
        (["run", "card.py", "--"], "-- is followed by no command"),
        (["run", "card.py", "--shell", "--", "ls"], "--shell and a command exclude each other"),
        (["run", "card.py", "--bus", "host", "--memory", "1G"], "--memory goes with a guest"),
        (
            ["run", "card.py", "--bus", "host", "--kernel-arg", "x"],
            "--kernel-arg goes with a guest",
        ),
        (["run", "card.py", "--bus", "host", "--guest", "qemu"], "goes with --bus vfio-user, not"),
        (
            ["run", "card.py", "--bus", "host", "--kernel", "x"],
            "--kernel goes with --bus vfio-user",
        ),
        (["run", "card.py", "--bus", "host", "--module", "x.ko"], "module x.ko does not exist"),
        (["run", "uml:socket", "--bus", "host"], "is served for the uml bus only"),
        (["run", "card.py", "--bus", "host", "--shell", "--", "ls"], "exclude each other"),
        (["run", "nvme", "--bus", "host", "--reload"], "--reload needs a card in a file"),
        (["host", "instal"], "No such command 'instal'"),
        (["run", "card.py", "--bus", "simulated"], "it has no guest"),
        (["run", "card.py", "--bus", "pci"], "there is no bus pci: the buses are uml"),
        (["run", "card.py", "--module", "x.ko"], "module x.ko does not exist"),
        (["run", "card.py", "--memory", "some"], "size 'some' is not a number of bytes"),
        (["run", "nvme", "--reload"], "--reload needs a card in a file"),
        (["run", "large.py"], "large.py, line 5: a BAR of 3000 bytes is impossible"),
        (["run", "clash.py"], "overlaps register first"),
        (["run", "taken.py"], "--memory of Taken is an option of softcard run itself"),
        (["serve", "card.py"], "Give either --socket PATH or --listen ADDRESS"),
        (["serve", "card.py", "--socket", "s", "--listen", "l"], "Give either --socket PATH or"),
        (
            ["serve", "card.py", "--socket", "s", "--tls", "keys"],
            "go with --listen tls://HOST:PORT",
        ),
        (["serve", "card.py", "--listen", "x" * 108], "is too long: 108 bytes"),
        (["serve", "card.py", "--listen", "no/where"], "cannot make socket no/where"),
        (["serve", "card.py", "--listen", "s", "--tls", "keys"], "where --tls has no use"),
        (["serve", "card.py", "--listen", "tls://pi"], "address tls://pi is none of a card"),
        (["serve", "card.py", "--listen", "tls://127.0.0.1:0"], "ports are 1 to 65535"),
        (["serve", "card.py", "--listen", "tls://127.0.0.1:4711"], "needs certificates"),
        (["serve", "card.py", "--listen", "tls://[::1]:4711", "--tls", "none"], "does not exist"),
        (["serve", "card.py", "--listen", "tcp://0.0.0.0:4711"], "use tls://, or add --plain-tcp"),
        (["run", "tls://127.0.0.1:4711"], "needs certificates"),
        (["run", "tls://127.0.0.1:4711", "--tls", "none"], "does not exist"),
        (["run", "tcp://10.0.0.1:4711"], "use tls://, or add --plain-tcp"),
        (["run", "http://pi:80"], "address http://pi:80 is none of a card"),
        (["certificates", "keys"], "Missing argument 'HOST...'"),
        (["certificates", ".", "pi"], "is not empty: name a folder that does not exist yet"),
        (["certificates", "keys", "a b"], "is neither a name nor an address"),
        (["serve", "card.py", "--socket", "x" * 108], "is too long: 108 bytes"),
        (["serve", "card.py", "--socket", "no/where"], "cannot make socket no/where"),
        (["serve", "card.py", "--socket", "s", "--", "ls"], "nothing can follow -- here"),
        (["demo", "nvm"], "'nvm' is not one of 'nvme', 'edu', 'printer'"),
        (["rum"], "No such command 'rum'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    softcard: CommandLine, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    _write_cards(tmp_path)
    said = softcard(*arguments)
    first, *rest = said.err.splitlines()
    assert first.startswith("softcard: ")
    assert sentence in first
    assert "Traceback" not in said.err
    assert all("--help shows what is possible" in line for line in rest)
    assert said.status == 2


def _write_cards(folder: Path) -> None:
    (folder / "card.py").write_text(CARD)
    (folder / "empty.py").write_text("import softcard\n")
    (folder / "two.py").write_text(
        "from softcard import Card\nclass One(Card): ...\nclass Two(Card): ...\n"
    )
    (folder / "large.py").write_text(
        "from softcard import Bar, Card\n\nclass Large(Card):\n    vendor_id, device_id = 1, 2\n"
        "    class bar0(Bar, size=3000): ...\n"
    )
    (folder / "clash.py").write_text(
        CARD.replace("message", "first").replace(
            "(0x00)", "(0x00)\n        second = Register(0x02)"
        )
    )
    (folder / "taken.py").write_text(
        "from softcard import Card\n\nclass Taken(Card):\n    vendor_id, device_id = 1, 2\n"
        "    def __init__(self, *, memory: int = 1): super().__init__()\n"
    )


def test_an_exception_while_the_file_is_imported_shows_only_its_own_frames(
    softcard: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "helper.py").write_text("def broken():\n    return {}['key']\n")
    (tmp_path / "broken.py").write_text("import helper\n\nhelper.broken()\n")
    said = softcard("run", "broken.py")
    assert said.status == 2
    assert "KeyError: 'key'" in said.err
    assert f'"{tmp_path}/broken.py", line 3' in said.err
    assert f'"{tmp_path}/helper.py", line 2' in said.err
    assert "softcard/cli" not in said.err
    assert "importlib" not in said.err


def test_a_syntax_error_shows_the_line(softcard: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "card.py").write_text("class Card(:\n")
    said = softcard("run", "card.py")
    assert said.status == 2
    assert "class Card(:" in said.err
    assert "SyntaxError" in said.err
    assert "softcard/cli" not in said.err


def test_an_exception_of_the_constructor_shows_only_its_own_frames(
    softcard: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "card.py").write_text(CARD + "\n    def __init__(self):\n        1 / 0\n")
    said = softcard("run", "card.py")
    assert said.status == 2
    assert "ZeroDivisionError" in said.err
    assert "1 / 0" in said.err
    assert "softcard/cli" not in said.err


def test_a_file_is_read_anew_each_time(softcard: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "card.py").write_text(CARD)
    assert "Options of Printer:" in softcard("run", "card.py", "--help").out
    (tmp_path / "card.py").write_text(CARD.replace("Printer", "Plotter"))
    assert "Options of Plotter:" in softcard("run", "card.py", "--help").out


def test_a_file_in_a_package_may_import_its_neighbours(
    softcard: CommandLine, tmp_path: Path
) -> None:
    package = tmp_path / "cards_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "ids.py").write_text("VENDOR = 0x1234\n")
    (package / "card.py").write_text(
        CARD.replace("class Printer", "from .ids import VENDOR\n\nclass Printer")
    )
    assert softcard("run", "cards_of_mine/card.py", "--help").status == 0


def test_a_file_may_be_called_as_a_module_of_python(softcard: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(CARD)
    assert "Options of Printer:" in softcard("run", "json.py", "--help").out
    import json

    assert json.loads("1") == 1


def test_a_cards_own_file_is_a_command_line(tmp_path: Path) -> None:
    file = tmp_path / "card.py"
    file.write_text(CARD + "\n\nfrom softcard import run\n\nrun(Printer)\n")
    done = subprocess.run(
        [sys.executable, str(file), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: python card.py [OPTIONS]")
    assert "Options of Printer:" in done.stdout
    done = subprocess.run(
        [sys.executable, str(file), "--bus", "simulated"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("softcard: --bus simulated cannot be used here")


@pytest.mark.skipif(Path("/dev/softcard").exists(), reason="this machine has the module")
def test_a_machine_without_the_module_is_told_where_to_look(
    softcard: CommandLine, tmp_path: Path
) -> None:
    _write_cards(tmp_path)
    said = softcard("run", "card.py", "--bus", "host")
    assert said.status == 1
    (line,) = said.err.splitlines()
    assert line.startswith("softcard: /dev/softcard does not exist")
    assert "softcard host status" in line


def test_cards_lists_the_shipped_cards(softcard: CommandLine) -> None:
    said = softcard("cards")
    assert said.status == 0
    for text in ("nvme", "edu", "printer", "1234:11e8", "--dma-mask"):
        assert text in said.out


def test_there_are_no_colours_without_a_terminal(softcard: CommandLine) -> None:
    assert "\x1b" not in softcard("run", "nvm").err
    assert "\x1b" not in softcard("cards").out
