"""Clients that call without pause while a server is restarted; run as a script, they judge the restarts of a real one."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from stage.asking import STREAM, call
from stage.raw import Answer, RawConnection, connected


@dataclass
class Figures:
    """What became of the calls; `faults` tells of each that was lost."""

    short: int = 0
    kept: int = 0
    streams: int = 0
    longest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line."""
        kinds = {kind: sum(fault.startswith(kind) for fault in self.faults) for kind in ("refused", "reset", "cut", "failed")}
        return (
            f"{self.short} calls on connections of their own, {self.kept} on kept ones, {self.streams} streams; "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            + f"; the longest wait for an answer was {self.longest:.1f} s"
        )


class Load:
    """Clients of three kinds: each call on a new connection, calls on a kept one, streams."""

    def __init__(self, url: str, token: str) -> None:
        self.figures = Figures()
        self._url = url
        self._enough = asyncio.Event()
        self._call, self._stream = call(token, path="/v1/models", method="GET", body=b""), call(token, body=STREAM)
        self._clients: list[asyncio.Task[None]] = []

    def start(self, clients: int) -> None:
        """So many clients of each kind begin."""
        for kind in (self._short, self._kept, self._streaming):
            self._clients += [asyncio.ensure_future(self._go_on(kind)) for _ in range(clients)]

    async def end(self) -> Figures:
        """Let every client finish its last call."""
        self._enough.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*self._clients)
        return self.figures

    async def _go_on(self, kind: Callable[[RawConnection], Awaitable[None]]) -> None:
        while not self._enough.is_set():
            try:
                async with connected(self._url) as connection:
                    await kind(connection)
            except ConnectionRefusedError:
                self.figures.faults.append("refused")
            except ConnectionError as error:
                self.figures.faults.append(f"reset: {error}")

    async def _answer(self, connection: RawConnection, asking: bytes) -> Answer:
        began = time.monotonic()
        await connection.send(asking)
        found = await connection.answer()
        self.figures.longest = max(self.figures.longest, time.monotonic() - began)
        if found is None:
            raise ConnectionResetError("closed without an answer")
        if not found.whole:
            self.figures.faults.append(f"cut after {len(found.body)} bytes")
        elif found.status != 200:
            self.figures.faults.append(f"failed: {found.status} {found.body[:200]!r}")
        return found

    async def _short(self, connection: RawConnection) -> None:
        await self._answer(connection, self._call)
        self.figures.short += 1

    async def _kept(self, connection: RawConnection) -> None:
        kept = True
        while kept and not self._enough.is_set():
            kept = (await self._answer(connection, self._call)).header(b"connection") != b"close"
            self.figures.kept += 1

    async def _streaming(self, connection: RawConnection) -> None:
        found = await self._answer(connection, self._stream)
        if found.whole and not found.body.endswith(b"data: [DONE]\n\n"):
            self.figures.faults.append(f"cut: ends with {found.body[-60:]!r}")
        self.figures.streams += 1


async def judge(url: str, token: str, command: list[str], restarts: int) -> Figures:
    """Restart a server again and again, by a command, under load."""
    load = Load(url, token)
    load.start(8)
    for _ in range(restarts):
        await asyncio.sleep(1)
        await asyncio.to_thread(subprocess.run, command, check=True)
    await asyncio.sleep(1)
    return await load.end()


if __name__ == "__main__":
    found = asyncio.run(judge(sys.argv[1], sys.argv[2], sys.argv[3:], restarts=5))
    print(found)
    sys.exit(1 if found.faults else 0)
