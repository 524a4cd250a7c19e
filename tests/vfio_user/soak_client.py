"""A vfio-user client that works until it is killed.

python -m tests.vfio_user.soak_client PATH SEED
"""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path

from tests.unit.fake_vfio_client import (
    ACT,
    DMA_MAP,
    DMA_READ,
    INTERRUPT_NOW,
    MSIX,
    NONE,
    PAGE,
    REGION_READ,
    SCRATCH,
    SET_IRQS,
    TRIGGER,
    ClientMemory,
    FakeClient,
    access,
    dma_map,
    raised,
    set_irqs,
)

AT = 0x100000
SIZE = 16 * PAGE
VECTORS = 8
MARK = b"soak"


def session(path: Path, rnd: random.Random, work: int) -> None:
    """Connect, do so many pieces of work, and go in the middle of something.

    Raises:
        AssertionError, OSError: the server did something wrong, or went.
    """
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(VECTORS)]
    try:
        with FakeClient(path) as client, ClientMemory(SIZE) as memory:
            client.enable()
            client.wire(MSIX, events)
            shared = rnd.random() < 0.7
            if shared:
                client.map(memory, AT)
            else:
                client.ask(DMA_MAP, dma_map(AT, SIZE))
            for _ in range(work):
                _work(client, memory, events, rnd, shared=shared)
            if rnd.random() < 0.5:
                client.socket.sendall(b"\0" * rnd.randrange(1, 16))
    finally:
        for event in events:
            os.close(event)


def _work(
    client: FakeClient, memory: ClientMemory, events: list[int], rnd: random.Random, *, shared: bool
) -> None:
    match rnd.randrange(5):
        case 0:
            value = rnd.getrandbits(64)
            client.write(0, SCRATCH, 8, value, posted=rnd.random() < 0.5)
            assert client.read(0, SCRATCH, 8) == value
        case 1:
            data = rnd.randbytes(rnd.randrange(1, 1 << 16))
            at = rnd.randrange((1 << 20) - len(data))
            client.write_block(2, at, data, posted=rnd.random() < 0.5)
            assert client.read_block(2, at, len(data)) == data
        case 2:
            client.ask(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, 0, VECTORS))
            assert all(raised(event) for event in events)
            client.write(0, INTERRUPT_NOW, 4, rnd.randrange(VECTORS))
        case 3:
            # The card copies a piece of memory to the next.
            memory.view[: len(MARK)] = MARK
            client.write(0, ACT, 4, 1, posted=True)
            for _ in range(0 if shared else 2):
                got = client.receive()
                address, count = struct.unpack_from("<QQ", got.payload)
                if got.command == DMA_READ:
                    client.answer(got, got.payload + memory.view[address - AT :][:count])
                else:
                    memory.view[address - AT :][:count] = got.payload[16:]
                    client.answer(got, got.payload[:16])
            client.read(0, SCRATCH)
            assert bytes(memory.view[PAGE : PAGE + len(MARK)]) == MARK
        case 4:
            idents = [client.send(REGION_READ, access(SCRATCH, 0, 4)) for _ in range(50)]
            for ident in idents:
                client.reply_to(ident)


def main() -> None:
    """Work until killed, or until the server goes."""
    path, rnd = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    while True:
        session(path, rnd, rnd.randrange(200))


if __name__ == "__main__":
    main()
