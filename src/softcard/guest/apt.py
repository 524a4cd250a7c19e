"""Debian packages of any suite, got without touching what is installed or the machine's sources.

apt runs with a state of its own: its own sources list, lists, archives and an empty status file.
The mirror is the one that the machine uses. No root is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from softcard.errors import SoftcardError

# Oldest first. A suite after the machine's own is newer.
RELEASES = ("bookworm", "trixie", "forky", "duke", "sid")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BACKPORTS = "-backports"
POLL = 0.3

Fetched = Callable[[float], None]
"""Called with the share of the bytes that have come, 0 to 1."""


class AptError(SoftcardError):
    """A package cannot be had; says which and why."""


@dataclass(frozen=True)
class Mirror:
    """Where the machine gets Debian from.

    Attributes:
        uri: the mirror.
        suites: the suites that it is used for.
        options: options of a one-line source that say how to trust it, such as `signed-by=...`.
    """

    uri: str
    suites: tuple[str, ...]
    options: tuple[str, ...] = ()


def parse_one_line(text: str) -> list[Mirror]:
    """The mirrors in a sources.list: `deb [option=value ...] URI SUITE COMPONENT...`."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)", line)
        if match and "main" in match[4].split():
            found.append(Mirror(match[2], (match[3],), _trust((match[1] or "").split())))
    return found


def parse_deb822(text: str) -> list[Mirror]:
    """The mirrors in a .sources file: stanzas of `Field: value`, values may go on indented."""
    found = []
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)
        }
        if fields.get("enabled", ["yes"])[0].lower() in ("no", "false", "0"):
            continue
        if "deb" not in fields.get("types", []) or "main" not in fields.get("components", []):
            continue
        trust = [f"{name}={fields[name][0]}" for name in ("signed-by", "trusted") if name in fields]
        suites = tuple(fields.get("suites", ()))
        found += [Mirror(uri, suites, _trust(trust)) for uri in fields.get("uris", ())]
    return found


def _trust(options: Iterable[str]) -> tuple[str, ...]:
    # A key that is given in full, not as a file, only fits into a stanza; the keyring serves then.
    return tuple(
        option
        for option in options
        if re.fullmatch(r"(signed-by=/.*|trusted=.*)", option, re.IGNORECASE)
    )


def debian_mirror(codename: str, apt_folder: Path = Path("/etc/apt")) -> Mirror:
    """The mirror from which the machine gets Debian `codename`.

    Raises:
        AptError: its sources do not say.
    """
    found: list[Mirror] = []
    for path in (apt_folder / "sources.list", *sorted(apt_folder.glob("sources.list.d/*"))):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            found += parse_one_line(text)
        elif path.suffix == ".sources":
            found += parse_deb822(text)
    for names in ((codename, "stable"), (f"{codename}-updates", "stable-updates")):
        for mirror in found:
            if set(names) & set(mirror.suites):
                return mirror
    raise AptError(
        f"the machine's package sources in {apt_folder} have no entry for Debian {codename}: "
        "add one"
    )


def codename_of(os_release: Path = Path("/etc/os-release")) -> str | None:
    """The code name of the Debian that this machine runs; None if it runs something else."""
    try:
        text = os_release.read_text()
    except OSError:
        return None
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.M))
    if fields.get("ID") != "debian":
        return None
    # Testing and unstable may lack the field.
    codename: str = fields.get("VERSION_CODENAME", "sid")
    return codename


def suites_from(codename: str, oldest: str | None = None) -> list[str]:
    """The machine's own suite, its backports, and those of all newer releases, oldest first.

    Args:
        codename: the machine's release.
        oldest: leave out releases that are older than this one.
    """
    start = RELEASES.index(codename) if codename in RELEASES else 0
    if oldest is not None:
        start = max(start, RELEASES.index(oldest))
    suites = []
    for name in RELEASES[start:]:
        suites.append(name)
        if name != "sid":
            suites.append(f"{name}{BACKPORTS}")
    return suites


class Apt:
    """apt with a state of its own for one suite, and for backports what they are built upon.

    Args:
        folder: where the state is kept; it may be used again.
        mirror: where the packages come from.
        suite: the suite to look at.
    """

    def __init__(self, folder: Path, mirror: Mirror, suite: str) -> None:
        self.suite = suite
        self._folder = folder / suite
        self._archives = self._folder / "archives"
        (self._archives / "partial").mkdir(parents=True, exist_ok=True)
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        options = mirror.options
        if not options and KEYRING.exists():
            options = (f"signed-by={KEYRING}",)
        signed = f"[{' '.join(options)}] " if options else ""
        suites = sorted({suite, suite.removesuffix(BACKPORTS)})
        (self._folder / "sources.list").write_text(
            "".join(f"deb {signed}{mirror.uri} {name} main\n" for name in suites)
        )
        settings = {
            "Dir::State": self._folder,
            "Dir::State::lists": lists,
            "Dir::State::status": self._folder / "status",
            "Dir::Cache": self._folder,
            "Dir::Cache::archives": self._archives,
            "Dir::Etc::sourcelist": self._folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Languages": "none",
            "APT::Default-Release": suite,
            "APT::Sandbox::User": "root",
            "APT::Get::List-Cleanup": "false",
        }
        # Hooks of the machine concern what is installed on it.
        clear = ("APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg")
        text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        text += "".join(f"#clear {name};\n" for name in clear)
        # Read last of all: what APT_CONFIG names is read before the machine's own settings.
        self._settings = self._folder / "apt.conf"
        self._settings.write_text(text)

    def update(self) -> bool:
        """Fetch the suite's index. Returns False where the mirror has no such suite.

        Raises:
            AptError: the mirror cannot be reached or is not trusted.
        """
        done = self._run("apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
        if done.returncode == 0:
            return True
        if re.search(r"does not have a Release file|404 +Not Found", done.stderr):
            return False
        raise AptError(
            f"the index of Debian {self.suite} cannot be fetched: {_reason(done.stderr)}; "
            "check the network"
        )

    def version(self, package: str) -> str | None:
        """The version of `package` in the suite, or None."""
        return self._field(package, r"Version: (\S+)")

    def needs(self, package: str) -> list[str]:
        """The packages that `package` itself depends on, without versions and alternatives."""
        depends = self._field(package, r"Depends: (.+)") or ""
        return re.findall(r"(?:^|,)\s*([^\s,(|]+)", depends)

    def names(self, prefix: str) -> list[str]:
        """The packages whose names begin so."""
        return self._run("apt-cache", "pkgnames", prefix).stdout.split()

    def _field(self, package: str, pattern: str) -> str | None:
        done = self._run("apt-cache", "show", "--no-all-versions", package)
        match = re.search(rf"^{pattern}$", done.stdout, re.M)
        return match[1] if done.returncode == 0 and match else None

    def fetch(
        self,
        packages: Sequence[str],
        folder: Path,
        *,
        dependencies: bool = False,
        progress: Fetched | None = None,
    ) -> None:
        """Fetch packages and unpack them into `folder`, as they would lie on a machine.

        Args:
            packages: names of packages that `version` knows.
            folder: made if it does not exist.
            dependencies: everything that they need as well, down to the C library.
            progress: called now and then.

        Raises:
            AptError: no network, no room, or a package that does not exist.
        """
        command = ["apt-get", "install", "--download-only", "--yes", "--no-install-recommends"]
        if not dependencies:
            command = ["apt-get", "download"]
        uris = self._run(*command, "--print-uris", *packages)
        wanted = re.findall(r"^'[^']+' (\S+) (\d+)", uris.stdout, re.M)
        if uris.returncode or not wanted:
            raise AptError(
                f"Debian {self.suite} cannot give {', '.join(packages)}: {_reason(uris.stderr)}"
            )
        total = sum(int(size) for _, size in wanted)
        done = self._run(
            *command, *packages, cwd=self._archives,
            watch=(lambda: progress(self._bytes(wanted) / total)) if progress else None,
        )  # fmt: skip
        if done.returncode:
            raise AptError(
                f"{', '.join(packages)} of Debian {self.suite} cannot be fetched: "
                f"{_reason(done.stderr)}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, _ in wanted:
            archive = self._archives / name
            unpacked = self._run("dpkg-deb", "--extract", str(archive), str(folder))
            if unpacked.returncode:
                raise AptError(f"{name} cannot be unpacked: {_reason(unpacked.stderr)}")
            archive.unlink()

    def _bytes(self, wanted: Sequence[tuple[str, str]]) -> int:
        count = 0
        for name, _ in wanted:
            for path in (self._archives / name, self._archives / "partial" / name):
                if path.exists():
                    count += path.stat().st_size
        return count

    def _run(
        self, *command: str, cwd: Path | None = None, watch: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        program = shutil.which(command[0])
        if program is None:
            raise AptError(f"{command[0]} is missing, without which no package can be fetched")
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        arguments = list(command[1:])
        if command[0].startswith("apt-"):
            arguments = ["-c", str(self._settings), *arguments]
        with subprocess.Popen(
            [program, *arguments],
            cwd=cwd, env=environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            while True:
                try:
                    output, errors = process.communicate(timeout=POLL if watch else None)
                    break
                except subprocess.TimeoutExpired:
                    if watch:
                        watch()
                except BaseException:
                    process.kill()
                    raise
        return subprocess.CompletedProcess(command, process.returncode, output, errors)


def each_suite(
    folder: Path,
    looking: Callable[[str], None] | None = None,
    *,
    first: str | None = None,
    oldest: str | None = None,
) -> Iterator[Apt]:
    """The suites that the mirror has, from the machine's own on, oldest first.

    Args:
        folder: where apt's state is kept.
        looking: called with each suite before its index is fetched.
        first: the release to begin with, whichever the machine's own is.
        oldest: the release to begin with where the machine's own is older.

    Raises:
        AptError: this machine is no Debian, or there is no network.
    """
    codename = codename_of()
    if codename is None:
        raise AptError("this machine is no Debian, so it has no mirror to fetch from")
    mirror = debian_mirror(codename)
    for suite in suites_from(first or codename, oldest):
        if looking is not None:
            looking(suite)
        apt = Apt(folder, mirror, suite)
        if apt.update():
            yield apt


def first_suite_with(
    package: str,
    folder: Path,
    looking: Callable[[str], None] | None = None,
    *,
    first: str | None = None,
    oldest: str | None = None,
    good: Callable[[str], bool] = lambda version: True,
) -> tuple[Apt, str]:
    """The oldest suite that has `package`, and which version.

    Args:
        package: the name of a package.
        folder, looking, first, oldest: as in `each_suite`.
        good: whether a version will do.

    Raises:
        AptError: no suite has it, this machine is no Debian, or there is no network.
    """
    suites = []
    for apt in each_suite(folder, looking, first=first, oldest=oldest):
        suites.append(apt.suite)
        version = apt.version(package)
        if version is not None and good(version):
            return apt, version
    raise AptError(f"the mirror has {package} in none of the suites {', '.join(suites)}")


def _reason(errors: str) -> str:
    """The first complaint in what apt has said."""
    for line in errors.splitlines():
        if line.startswith(("E:", "dpkg-deb:", "Err:")):
            return line.removeprefix("E:").strip()
    return errors.strip().splitlines()[-1] if errors.strip() else "it does not say why"
