"""The channel between host and agent, over a stream that outlives the agent."""

from __future__ import annotations

import marshal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from softcard import GuestError
from softcard.guest import frames
from softcard.guest.channel import Channel, Process

GREETING = bytes(range(16))
TIMEOUT = 5.0


class Agent:
    """The other end, by hand."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        stream.settimeout(TIMEOUT)
        self.reader = frames.FrameReader(GREETING)

    def start(self) -> None:
        """Greet, wait for the greeting, and be ready."""
        self.reader = frames.FrameReader(GREETING)
        self.stream.sendall(GREETING)
        while not self.reader.greeted:
            self.reader.feed(self.stream.recv(1 << 16))
        self.send(frames.READY, 0)

    def send(self, kind: int, ident: int, payload: bytes = b"") -> None:
        self.stream.sendall(frames.pack(kind, ident, payload))

    def receive(self) -> tuple[int, int, bytes]:
        while True:
            data = self.stream.recv(1 << 16)
            received = self.reader.feed(data)
            self.send(frames.TAKEN, 0, struct.pack("<I", self.reader.fresh))
            if received:
                return received[0]


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Agent]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, lambda: "the guest has gone", GREETING)
    yield channel, Agent(theirs)
    theirs.close()
    channel.close()


def run_true(channel: Channel) -> Process:
    return Process(channel, ["true"], env={}, cwd="/")


def test_a_command_runs_after_the_greetings(ends: tuple[Channel, Agent]) -> None:
    channel, agent = ends
    agent.start()
    assert channel.wait_until_ready(TIMEOUT)
    process = run_true(channel)
    kind, ident, payload = agent.receive()
    assert (kind, marshal.loads(payload)["argv"]) == (frames.RUN, ["true"])
    agent.send(frames.EXIT, ident, struct.pack("<i", 3))
    assert process.wait(TIMEOUT) == 3


def test_noise_before_the_greeting_is_ignored(ends: tuple[Channel, Agent]) -> None:
    channel, agent = ends
    agent.stream.sendall(b"\xff" * 1000 + GREETING[:7])
    agent.start()
    assert channel.wait_until_ready(TIMEOUT)
    assert not channel.gone


def test_half_a_frame_of_a_former_life_is_forgotten(ends: tuple[Channel, Agent]) -> None:
    channel, agent = ends
    agent.start()
    assert channel.wait_until_ready(TIMEOUT)
    process = run_true(channel)
    _, ident, _ = agent.receive()
    agent.stream.sendall(frames.pack(frames.OUTPUT, ident, bytes(1000))[:500])
    agent.start()
    assert channel.wait_until_ready(TIMEOUT, start=2)
    with pytest.raises(GuestError, match="started anew"):
        process.wait(TIMEOUT)
    with pytest.raises(GuestError, match="started anew"):
        process.end_input()
    again = run_true(channel)
    _, ident, _ = agent.receive()
    agent.send(frames.EXIT, ident, struct.pack("<i", 0))
    assert again.wait(TIMEOUT) == 0


def test_who_waits_for_room_is_woken_by_a_restart(ends: tuple[Channel, Agent]) -> None:
    channel, agent = ends
    agent.start()
    assert channel.wait_until_ready(TIMEOUT)
    process = run_true(channel)

    def write() -> None:
        for _ in range(10):
            process.write(bytes(frames.WINDOW // 2))

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        # More than this is not on its way while the agent takes nothing.
        while len(agent.stream.recv(1 << 16, socket.MSG_PEEK)) < frames.WINDOW // 2:
            pass
        agent.start()
        with pytest.raises(GuestError, match="started anew"):
            writing.result(TIMEOUT)


def test_what_the_former_life_was_told_does_not_reach_the_next(
    ends: tuple[Channel, Agent],
) -> None:
    channel, agent = ends
    agent.start()
    assert channel.wait_until_ready(TIMEOUT)
    run_true(channel)
    agent.start()  # never having read it
    assert channel.wait_until_ready(TIMEOUT, start=2)
    Process(channel, ["false"], env={}, cwd="/")
    _, _, payload = agent.receive()
    assert marshal.loads(payload)["argv"] == ["false"]


def test_a_greeting_in_pieces_is_seen() -> None:
    reader = frames.FrameReader(GREETING)
    frame = frames.pack(frames.READY, 0)
    received = []
    for byte in b"noise" + GREETING + frame:
        received += reader.feed(bytes([byte]))
    assert (reader.greeted, received) == (1, [(frames.READY, 0, b"")])


def test_an_agent_that_hangs_up_is_gone(ends: tuple[Channel, Agent]) -> None:
    channel, agent = ends
    agent.start()
    assert channel.wait_until_ready(TIMEOUT)
    process = run_true(channel)
    agent.stream.shutdown(socket.SHUT_RDWR)
    with pytest.raises(GuestError, match="the guest has gone"):
        process.wait(TIMEOUT)
    assert channel.wait_until_ready(TIMEOUT, start=9)
    assert channel.gone
