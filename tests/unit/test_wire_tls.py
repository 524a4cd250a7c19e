"""A card over TLS: who is let in, and what passes."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from softcard import Bar, Card, Memory, Msi, Register
from softcard.bus.vfio_user import VfioUserServer
from softcard.errors import PlugError, SoftcardError, UsageError
from softcard.wire import vfio_user as wire
from softcard.wire.address import NetworkAddress
from softcard.wire.certificates import make_certificates
from softcard.wire.connect import connect
from softcard.wire.messages import Message, Messages
from softcard.wire.stream import HungUpError, MessageStream
from softcard.wire.tls import Credentials
from softcard.wire.vfio_user import Command, Irq

TIMEOUT = 10.0
MEGABYTE = 1 << 20


class Board(Card):
    vendor_id, device_id = 0x1234, 0x0001
    interrupt_pin = 1
    msi = Msi(vectors=4)

    class bar0(Bar, size=1 << 21):
        copy = Register(0x00, width=64)
        number = Register(0x08, reset=0x12345678)
        page = Memory(1 << 20, MEGABYTE)

    @bar0.copy.on_write
    def turn_around(self, address: int) -> None:
        """Read a megabyte and write it back behind itself, reversed."""
        self.dma.write(address + MEGABYTE, self.dma.read(address, MEGABYTE)[::-1])
        self.interrupt(2)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "keys"
    make_certificates(folder, ["localhost", "127.0.0.1"])
    return folder


@pytest.fixture
def address() -> NetworkAddress:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return NetworkAddress("tls", "127.0.0.1", probe.getsockname()[1])


@pytest.fixture
def server(keys: Path, address: NetworkAddress) -> Iterator[VfioUserServer]:
    server = VfioUserServer(Board(), address, credentials=Credentials(keys / "server"))
    yield server
    server.stop()


class Client:
    """A client by hand, with memory of its own."""

    def __init__(self, stream: MessageStream) -> None:
        self.stream = stream
        self.messages = Messages(stream, 1 << 21)
        self.memory = bytearray(os.urandom(MEGABYTE)) + bytearray(MEGABYTE)
        self.interrupts: list[tuple[int, int, int]] = []
        capabilities = {"max_data_xfer_size": MEGABYTE, wire.INTERRUPTS: True}
        reply = self.messages.request(
            Command.VERSION, wire.pack_version(wire.MAJOR, wire.MINOR, capabilities)
        )
        assert wire.unpack_version(reply)[2][wire.INTERRUPTS] is True

    def read(self, region: int, offset: int, count: int) -> bytes:
        request = wire.ACCESS.pack(offset, region, count)
        return self.messages.request(Command.REGION_READ, request)[wire.ACCESS.size :]

    def write(self, region: int, offset: int, data: bytes) -> None:
        request = wire.ACCESS.pack(offset, region, len(data)) + data
        self.messages.post(Command.REGION_WRITE, request)

    def serve_until_interrupt(self) -> None:
        while not self.interrupts:
            self.stream.wait(TIMEOUT)
            self.messages.receive()
            while (message := self.messages.take()) is not None:
                self.serve(message)

    def serve(self, message: Message) -> None:
        if message.command == Command.INTERRUPT:
            self.interrupts.append(wire.INTERRUPT.unpack(message.payload))
            return
        address, count = wire.DMA_ACCESS.unpack_from(message.payload)
        if message.command == Command.DMA_READ:
            data = bytes(self.memory[address : address + count])
            self.messages.reply(message, message.payload + data)
        else:
            assert message.flags & wire.NO_REPLY
            self.memory[address : address + count] = message.payload[wire.DMA_ACCESS.size :]


def test_registers_dma_and_interrupts_pass(
    server: VfioUserServer, keys: Path, address: NetworkAddress
) -> None:
    client = Client(connect(address, Credentials(keys / "client")))
    client.messages.request(
        Command.DMA_MAP,
        wire.DMA_MAP.pack(32, wire.DMA_READABLE | wire.DMA_WRITABLE, 0, 0, 2 * MEGABYTE),
    )
    flags = wire.DATA_EVENTFD | wire.ACTION_TRIGGER
    client.messages.request(
        Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(24, flags, Irq.MSI, 0, 4) + b"\1\1\1\1"
    )
    client.write(7, 4, struct.pack("<H", 6))
    assert client.read(0, 8, 4) == b"\x78\x56\x34\x12"
    client.write(0, 0, struct.pack("<Q", 0))
    client.serve_until_interrupt()
    assert client.interrupts == [(Irq.MSI, 2, 1)]
    assert client.memory[MEGABYTE:] == client.memory[:MEGABYTE][::-1]
    client.write(0, 1 << 20, bytes(client.memory[:MEGABYTE]))
    assert client.read(0, 1 << 20, MEGABYTE) == client.memory[:MEGABYTE]
    client.messages.close()


def test_nothing_is_offered_that_only_descriptors_could_give(
    server: VfioUserServer, keys: Path, address: NetworkAddress
) -> None:
    client = Client(connect(address, Credentials(keys / "client")))
    request = wire.REGION_INFO.pack(wire.REGION_INFO.size, 0, 0, 0, 0, 0)
    reply = client.messages.request(Command.DEVICE_GET_REGION_INFO, request)
    _, flags, _, _, size, _ = wire.REGION_INFO.unpack(reply)
    assert size == 1 << 21
    assert not flags & wire.REGION_MMAP
    client.messages.close()


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "other", ["localhost", "127.0.0.1"])
    return tmp_path / "other"


def test_a_server_that_nobody_vouches_for_is_refused(
    server: VfioUserServer, stranger: Path, address: NetworkAddress
) -> None:
    with pytest.raises(PlugError, match=r"certificate that tls://127.0.0.1:\d+ shows cannot be"):
        connect(address, Credentials(stranger / "client"))


def test_a_server_with_another_name_is_refused(tmp_path: Path, address: NetworkAddress) -> None:
    make_certificates(tmp_path / "pi", ["pi"])
    server = VfioUserServer(Board(), address, credentials=Credentials(tmp_path / "pi/server"))
    try:
        with pytest.raises(PlugError, match=r"its name 127\.0\.0\.1"):
            connect(address, Credentials(tmp_path / "pi/client"))
    finally:
        server.stop()


def assert_served(keys: Path, address: NetworkAddress) -> None:
    client = Client(connect(address, Credentials(keys / "client")))
    assert client.read(7, 0, 4) == b"\x34\x12\x01\x00"
    client.messages.close()


def refused(caplog: pytest.LogCaptureFixture) -> bool:
    return any("is refused" in record.getMessage() for record in caplog.records)


def test_a_client_that_nobody_vouches_for_is_refused_and_the_card_never_hears_of_it(
    keys: Path, address: NetworkAddress, stranger: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugged: list[bool] = []
    mixed = stranger / "client"
    (mixed / "ca.pem").write_bytes((keys / "client/ca.pem").read_bytes())
    server = VfioUserServer(
        Board(), address, credentials=Credentials(keys / "server"), changed=plugged.append
    )
    try:
        with caplog.at_level(logging.WARNING), pytest.raises((HungUpError, SoftcardError)):
            Client(connect(address, Credentials(mixed)))
        assert not plugged
        assert_served(keys, address)
        assert refused(caplog)
    finally:
        server.stop()


def test_who_does_not_speak_tls_is_refused(
    server: VfioUserServer, keys: Path, address: NetworkAddress
) -> None:
    with socket.create_connection((address.host, address.port)) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
        plain.settimeout(TIMEOUT)
        try:
            while plain.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert_served(keys, address)


def test_who_connects_and_says_nothing_keeps_nobody_waiting(
    server: VfioUserServer, keys: Path, address: NetworkAddress
) -> None:
    silent = [socket.create_connection((address.host, address.port)) for _ in range(4)]
    assert_served(keys, address)
    for sock in silent:
        sock.close()


def test_nobody_there_is_said_so(keys: Path, address: NetworkAddress) -> None:
    with pytest.raises(PlugError, match="no card can be reached at tls://"):
        connect(address, Credentials(keys / "client"))


def test_tls_needs_certificates(address: NetworkAddress) -> None:
    with pytest.raises(UsageError, match="--tls"):
        VfioUserServer(Board(), address)


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_credentials_that_are_none_are_said_so(keys: Path, tmp_path: Path, name: str) -> None:
    for file in (keys / "client").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text("nonsense")
    with pytest.raises(UsageError, match=f"{name}.*cannot be used"):
        Credentials(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match="does not exist"):
        Credentials(tmp_path)


def test_a_client_that_takes_nothing_does_not_hang_the_server(
    server: VfioUserServer, keys: Path, address: NetworkAddress
) -> None:
    client = Client(connect(address, Credentials(keys / "client")))
    request = wire.ACCESS.pack(1 << 20, 0, MEGABYTE)

    header = wire.HEADER.pack(1, Command.REGION_READ, 32, wire.COMMAND, 0)
    for _ in range(64):
        client.stream.send(header + request)
    server.stop()
    assert select.select([client.stream.fileno()], [], [], TIMEOUT)[0]
    client.messages.close()
