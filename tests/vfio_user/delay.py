"""A longer way between two ends of a TCP connection, for kernels that have no netem.

    python delay.py SECONDS FROM_HOST:PORT TO_HOST:PORT

Every byte arrives later by so much, in each direction, whatever comes before and behind it: the
latency grows, the throughput does not change. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque

CHUNK = 1 << 18
WAITING = 64 << 20


class Way:
    """One direction of one connection."""

    def __init__(
        self, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.seconds = seconds
        self.reader = reader
        self.writer = writer
        self.pieces: deque[tuple[float, bytes]] = deque()
        self.came = asyncio.Event()

    async def run(self) -> None:
        """Forward until the end."""
        sender = asyncio.create_task(self.send())
        loop = asyncio.get_running_loop()
        try:
            while data := await self.reader.read(CHUNK):
                self.pieces.append((loop.time() + self.seconds, data))
                self.came.set()
        except ConnectionError:
            pass
        self.pieces.append((loop.time() + self.seconds, b""))
        self.came.set()
        await sender

    async def send(self) -> None:
        """Send each piece when its time has come."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                while not self.pieces:
                    self.came.clear()
                    await self.came.wait()
                due, data = self.pieces.popleft()
                if (left := due - loop.time()) > 0:
                    await asyncio.sleep(left)
                if not data:
                    break
                self.writer.write(data)
                await self.writer.drain()
        except ConnectionError:
            pass
        self.writer.close()


async def main(seconds: float, source: str, target: str) -> None:
    """Forward connections until standard input ends."""
    host, port = target.rsplit(":", 1)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(host, int(port), limit=WAITING)
        await asyncio.gather(
            Way(seconds, reader, there[1]).run(), Way(seconds, there[0], writer).run()
        )

    own_host, own_port = source.rsplit(":", 1)
    server = await asyncio.start_server(forward, own_host, int(own_port), limit=WAITING)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2], sys.argv[3]))
