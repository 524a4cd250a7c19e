"""Makes the certificates for a card that is served over a network, by openssl(1)."""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from softcard.errors import SoftcardError, UsageError
from softcard.wire.tls import AUTHORITY, CERTIFICATE, KEY

DAYS = "3650"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def make_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """Make `folder/server` and `folder/client`, each with what `tls.Credentials` needs.

    The authority's key is thrown away, so that nobody can ever make another certificate for it.

    Args:
        folder: does not exist, or is empty.
        hosts: names and addresses under which clients reach the server.

    Raises:
        UsageError: there is something in the folder, or a host is neither name nor address.
        SoftcardError: openssl is missing or fails.
    """
    names = ",".join(_alternative(host) for host in hosts)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: name a folder that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="softcard-ca-") as secret:
        authority, key = folder / AUTHORITY, Path(secret, KEY)
        _openssl(
            "req", "-x509", *NEW_KEY, "-keyout", str(key), "-out", str(authority), "-days", DAYS,
            "-subj", "/CN=softcard authority",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        for end, extensions in (
            ("server", (f"subjectAltName={names}", "extendedKeyUsage=serverAuth")),
            ("client", ("extendedKeyUsage=clientAuth",)),
        ):
            own = folder / end
            own.mkdir(mode=0o700)
            _openssl(
                "req", "-x509", "-CA", str(authority), "-CAkey", str(key), *NEW_KEY,
                "-keyout", str(own / KEY), "-out", str(own / CERTIFICATE), "-days", DAYS,
                "-subj", f"/CN=softcard {end}", "-addext", "basicConstraints=critical,CA:FALSE",
                *(word for extension in extensions for word in ("-addext", extension)),
            )  # fmt: skip
            (own / AUTHORITY).write_bytes(authority.read_bytes())
        authority.unlink()


def _alternative(host: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(host)}"
    except ValueError:
        pass
    if not _NAME.fullmatch(host):
        raise UsageError(f"host '{host}' is neither a name nor an address, such as pi or 10.0.0.7")
    return f"DNS:{host}"


def _openssl(*arguments: str) -> None:
    try:
        done = subprocess.run(
            ["openssl", *arguments], capture_output=True, text=True, check=False,
            env={**os.environ, "LC_ALL": "C"}, umask=0o077,
        )  # fmt: skip
    except FileNotFoundError:
        raise SoftcardError(
            "openssl makes certificates and is not installed: apt-get install openssl"
        ) from None
    if done.returncode:
        raise SoftcardError(f"openssl has failed: {done.stderr.strip().splitlines()[-1]}")
