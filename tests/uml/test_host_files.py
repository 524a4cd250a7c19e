"""Nothing that root does in the guest changes a file of the host."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from softcard.guest.uml import UmlGuest

CONTENT = "as the user left it\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the host that the guest sees: not below /tmp, which is the guest's own."""
    with tempfile.TemporaryDirectory(prefix="softcard-precious-", dir="/var/tmp") as name:
        folder = Path(name)
        (folder / "file").write_text(CONTENT)
        (folder / "empty").mkdir()
        folder.chmod(0o777)
        (folder / "file").chmod(0o666)
        yield folder


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Everything about the files that a guest could change."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        text = path.read_text() if path.is_file() else ""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, text)
    return found


ATTEMPTS = {
    "write": "echo changed > {0}/file",
    "append": "echo more >> {0}/file",
    "create": "echo new > {0}/new && mkdir {0}/new-folder && mkfifo {0}/pipe",
    "delete": "rm -rf {0}",
    "rename": "mv {0}/file {0}/elsewhere",
    "change the mode": "chmod 000 {0}/file && chown 1:1 {0}/file && touch -d 1999-01-01 {0}/file",
    "link": "ln {0}/file {0}/link; ln -s file {0}/symlink",
}
THROUGH_HOSTFS = {
    "remount": "mount -o remount,rw {1}",
    "mount anew": "mkdir -p /tmp/m && mount -t hostfs -o {1} none /tmp/m",
    "mount anew, writable": "mkdir -p /tmp/m && mount -t hostfs -o rw,{1} none /tmp/m",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_the_guest_may_do_it_and_the_host_keeps_its_files(
    guest: UmlGuest, folder: Path, attempt: str
) -> None:
    before = snapshot(folder)
    guest.sh(ATTEMPTS[attempt].format(folder))
    assert snapshot(folder) == before


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_mounting_the_hosts_files_anew_gives_no_way_to_them(
    guest: UmlGuest, folder: Path, attempt: str
) -> None:
    before = snapshot(folder)
    guest.sh("mkdir /tmp/host")
    for options in (f"-o {folder}", f"-o rw,{folder}", f"-o {folder},rw"):
        guest.sh(f"mount -t hostfs {options} none /tmp/host", check=False)
        guest.sh("mount -o remount,rw /tmp/host", check=False)
        guest.sh(ATTEMPTS[attempt].format("/tmp/host"), check=False)
        guest.sh("umount /tmp/host", check=False)
        assert snapshot(folder) == before


def test_the_hosts_files_can_be_mounted_and_read(guest: UmlGuest, folder: Path) -> None:
    # Without this the tests above could pass because nothing was mounted at all.
    # mount(8) of Debian 13 takes the options apart, and names the folder's one.
    guest.sh(
        f"mkdir /tmp/host; mount -t hostfs -o ro,{folder} none /tmp/host"
        f" || mount -t hostfs -o ro,hostfs={folder} none /tmp/host"
    )
    assert guest.sh("cat /tmp/host/file").stdout == CONTENT


def test_the_root_of_the_overlay_cannot_be_written_either(guest: UmlGuest, folder: Path) -> None:
    before = snapshot(folder)
    guest.sh(
        "mkdir /tmp/whole; mount -t hostfs none /tmp/whole; mount -o remount,rw /tmp/whole; "
        f"rm -rf /tmp/whole/{folder}; echo x > /tmp/whole/{folder}/file",
        check=False,
    )
    assert snapshot(folder) == before


def test_what_one_guest_writes_the_next_does_not_see(guest: UmlGuest, folder: Path) -> None:
    guest.sh(f"echo mine > {folder}/file")
    assert guest.sh(f"cat {folder}/file").stdout == "mine\n"
    with UmlGuest() as other:
        assert other.sh(f"cat {folder}/file").stdout == CONTENT


def test_the_folders_that_a_guest_writes_to_are_its_own(guest: UmlGuest) -> None:
    mark = tempfile.mktemp(prefix="softcard-mark-", dir="")
    guest.sh(f"for f in /tmp /run /dev/shm /etc /var/tmp /root; do echo x > $f/{mark}; done")
    for folder in ("/tmp", "/run", "/dev/shm", "/etc", "/var/tmp", "/root"):
        assert not Path(folder, mark).exists()
