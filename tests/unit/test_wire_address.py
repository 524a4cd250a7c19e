"""Addresses at which cards are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from softcard.errors import UsageError
from softcard.wire.address import NetworkAddress, UnixAddress, check_private, parse_address


def test_a_path_is_a_unix_socket() -> None:
    address = parse_address("/run/card")
    assert address == UnixAddress(Path("/run/card"))
    assert str(address.of_function(0)) == "/run/card"
    assert str(address.of_function(2)) == "/run/card.2"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tls://pi:4711", "pi", 4711),
        ("tls://10.0.0.7:1", "10.0.0.7", 1),
        ("tcp://[::1]:65535", "::1", 65535),
    ],
)
def test_network_addresses(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert isinstance(address, NetworkAddress)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text
    assert str(address.of_function(3)).endswith(f":{port + 3}")


@pytest.mark.parametrize(
    "text",
    ["", "tls://pi", "tls://:4711", "tls://pi:x", "http://pi:80", "tls://pi:0", "tls://pi:65536",
     "tls://pi:4711/card", "tls://a:b:1"],
)  # fmt: skip
def test_what_is_no_address_is_said_so(text: str) -> None:
    with pytest.raises(UsageError, match="address"):
        parse_address(text)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1"])
def test_plain_tcp_is_allowed_on_loopback(text: str) -> None:
    check_private(parse_address(text), plain_allowed=False)


@pytest.mark.parametrize("text", ["tcp://0.0.0.0:1", "tcp://pi:1", "tcp://10.0.0.1:1"])
def test_plain_tcp_elsewhere_needs_a_word(text: str) -> None:
    with pytest.raises(UsageError, match="tls://"):
        check_private(parse_address(text), plain_allowed=False)
    check_private(parse_address(text), plain_allowed=True)
