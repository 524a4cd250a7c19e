"""A guest without privileges: as an ordinary user, and where seccomp or ptrace is forbidden."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import softcard
from softcard.guest.kernel import Kernel

ORDINARY = 1000
SETPRIV = [
    "setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--no-new-privs",
    "--inh-caps=-all", "--bounding-set=-all",
]  # fmt: skip

BOOT = """
import logging, os, sys
from pathlib import Path
from softcard.bus.uml import UmlBus
from softcard.cards.edu import Edu
from softcard.errors import GuestError
from softcard.guest.kernel.kernel import load
from softcard.guest.uml import UmlGuest

logging.basicConfig(format="warning: %(message)s", stream=sys.stdout)
try:
    with UmlBus() as bus, UmlGuest(bus, kernel=load(Path(sys.argv[1]))) as guest:
        slot = bus.plug(Edu())
        print("host user", os.getuid(), "guest user", guest.run(["id", "-u"]).stdout.strip())
        print(guest.sh(f"cat {slot.sysfs}/vendor; echo x > /etc/mine && cat /etc/mine").stdout)
        slot.unplug()
        print("seccomp" if guest.uses_seccomp else "ptrace")
        print("problems", guest.log.problems())
except GuestError as error:
    print("refused:", error)
"""

# Makes system calls fail, as the policy of a container does, and then becomes BOOT.
FORBID = """
import ctypes, os, struct, sys

SECCOMP, PRCTL, PTRACE = 317, 157, 101
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001
NUMBER, ARGUMENT = 0, 16

def unless(number, *then):
    return [(EQUAL, 0, len(then), number), *then]

program = [(LOAD, 0, 0, NUMBER)]
if "seccomp" in sys.argv[1]:
    program += unless(SECCOMP, (RETURN, 0, 0, EPERM))
    program += unless(
        PRCTL, (LOAD, 0, 0, ARGUMENT), (EQUAL, 0, 1, PR_SET_SECCOMP), (RETURN, 0, 0, EPERM),
        (RETURN, 0, 0, ALLOW),
    )
if "ptrace" in sys.argv[1]:
    program += unless(PTRACE, (RETURN, 0, 0, EPERM))
program += [(RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
prog = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, MODE_FILTER, prog, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture
def place(uml_kernel: Kernel) -> Iterator[Path]:
    """A folder for anybody, with the package, the kernel, and room for temporary files."""
    with tempfile.TemporaryDirectory(prefix="softcard-anybody-", dir="/var/tmp") as name:
        place = Path(name)
        shutil.copytree(Path(softcard.__file__).parent, place / "lib" / "softcard")
        (place / "kernel").mkdir()
        for file in (uml_kernel.image, uml_kernel.config, uml_kernel.folder / "kernel.json"):
            shutil.copy(file, place / "kernel")
        (place / "boot.py").write_text(BOOT)
        (place / "forbid.py").write_text(FORBID)
        (place / "tmp").mkdir()
        place.chmod(0o755)
        (place / "tmp").chmod(0o1777)
        yield place


def run(place: Path, *command: str | Path) -> str:
    result = subprocess.run(
        command,
        env={"PYTHONPATH": str(place / "lib"), "TMPDIR": str(place / "tmp"), "PATH": os.defpath},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in result.stdout, result.stdout
    assert list((place / "tmp").iterdir()) == []
    return result.stdout


def interpreter() -> str | None:
    """A Python that an ordinary user may run."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        # setpriv itself has still the right to start what its user may not.
        check = "import os, sys; os.stat(sys.executable); sys.exit(sys.version_info < (3, 11))"
        tried = subprocess.run([*SETPRIV, candidate, "-c", check], capture_output=True, check=False)
        if tried.returncode == 0:
            return candidate
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test runs as an ordinary user already")
def test_an_ordinary_user_can_do_it_all(place: Path) -> None:
    python = interpreter()
    if python is None:
        pytest.skip("no Python that an ordinary user may run is installed")
    said = run(place, *SETPRIV, python, place / "boot.py", place / "kernel")
    assert f"host user {ORDINARY} guest user 0" in said
    assert "0x1234\nx\n" in said
    assert "problems []" in said


@pytest.mark.parametrize(
    ("forbidden", "used"), [("nothing", "seccomp"), ("seccomp", "ptrace"), ("ptrace", "seccomp")]
)
def test_what_is_not_forbidden_is_used(place: Path, forbidden: str, used: str) -> None:
    said = run(
        place, sys.executable, place / "forbid.py", forbidden, place / "boot.py", place / "kernel"
    )
    assert "0x1234\nx\n" in said
    assert f"\n{used}\n" in said
    assert "problems []" in said
    assert ("warning: this machine lets nobody install seccomp filters" in said) == (
        used == "ptrace"
    )


def test_where_both_are_forbidden_it_says_so(place: Path) -> None:
    said = run(
        place,
        sys.executable, place / "forbid.py", "seccomp,ptrace", place / "boot.py", place / "kernel",
    )  # fmt: skip
    assert "refused: this machine forbids both seccomp and ptrace" in said
