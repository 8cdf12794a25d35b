"""The real command `llm-proxy`, run as processes."""

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN, place_migrated

ROOT = pathlib.Path(__file__).parents[2]


class Process:
    """One run of the command; `out` and `err` hold the lines it has written so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._news = asyncio.Event()
        self._readers = [
            asyncio.ensure_future(self._read(process.stdout, self.out)),
            asyncio.ensure_future(self._read(process.stderr, self.err)),
        ]

    async def _read(self, stream: asyncio.StreamReader | None, lines: list[str]) -> None:
        assert stream
        while line := await stream.readline():
            lines.append(line.decode().rstrip("\n"))
            self._news.set()
        self._news.set()

    async def until(self, text: str, seconds: float = 20) -> str:
        """The first line that holds the text, once it is written."""
        async with asyncio.timeout(seconds):
            while True:
                self._news.clear()
                for line in (*self.out, *self.err):
                    if text in line:
                        return line
                assert not all(reader.done() for reader in self._readers), f"ended without {text!r}: {self.out} {self.err}"
                await self._news.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self, seconds: float = 20) -> int:
        """The exit code, once everything it has written is read."""
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._readers)
            return await self._process.wait()

    async def stopped(self) -> int:
        """Ask it to stop; returns the exit code."""
        self.send(signal.SIGTERM)
        return await self.ended()


class Server(Process):
    """A run of `llm-proxy server`; `url` is where its proxy site is, `admin` its admin site."""

    url = ""
    admin = ""

    async def listens(self, log_file: str | None) -> None:
        """Wait until both sites are served, as the log says."""
        places = []
        for site in ("the proxy", "the admin site"):
            text = f"{site} listens on "
            line = await (_line_of(pathlib.Path(log_file), text) if log_file else self.until(text))
            places.append(re.split(r'[";]', line.partition(text)[2])[0])
        self.url, self.admin = places

    async def manage(self, method: str, path: str, json: object = None) -> Any:
        """One request to the management API, which must go well."""
        headers = {"Authorization": f"Bearer {MANAGEMENT_TOKEN}"}
        async with (
            aiohttp.ClientSession() as client,
            client.request(method, self.url + path, json=json, headers=headers) as reply,
        ):
            assert reply.status < 400, await reply.text()
            return await reply.json() if reply.status != 204 else None

    async def token_for(self, api_base: str, key: str, **fields: Any) -> dict[str, Any]:
        """A token of a new project whose key leads to `api_base`."""
        project = await self.manage(
            "POST", "/manage/projects", {"name": os.urandom(6).hex(), "api_key": key, "api_base": api_base}
        )
        token: dict[str, Any] = await self.manage("POST", "/manage/tokens", {"project_id": project["id"], **fields})
        return token


async def _line_of(file: pathlib.Path, text: str) -> str:
    """The first whole line of a file that holds the text, once it is written."""
    async with asyncio.timeout(20):
        while True:
            if found := [line for line in _lines(file) if text in line]:
                return found[0]
            await asyncio.sleep(0.02)


def _lines(file: pathlib.Path) -> list[str]:
    text = file.read_text() if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def environment(**more: str) -> dict[str, str]:
    """The environment of a process: nothing of the machine's settings, and what a test gives."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **more}


def house_environment(folder: pathlib.Path, **more: str) -> dict[str, str]:
    """The environment of a server in `folder` on free ports, on SQLite unless DATABASE_URL is given."""
    return environment(
        **{
            "LISTEN_ADDR": "127.0.0.1:0",
            "ADMIN_UI_LISTEN_ADDR": "127.0.0.1:0",
            "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
            "ENCRYPTION_KEY": ENCRYPTION_KEY,
            "ALLOW_PRIVATE_UPSTREAMS": "true",
            "EVENT_DIR": str(folder / "events"),
            "EVENT_FILE": str(folder / "events.jsonl"),
            **({} if "DATABASE_URL" in more else {"DATABASE_PATH": str(folder / "house.db")}),
            **more,
        }
    )


@asynccontextmanager
async def _running(
    made: type[Process], arguments: tuple[str, ...], folder: pathlib.Path, env: dict[str, str]
) -> AsyncIterator[Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llm_proxy",
        *arguments,
        cwd=folder,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    run = made(process)
    try:
        yield run
    finally:
        run.send(signal.SIGKILL)
        await run.ended()


@asynccontextmanager
async def command(*arguments: str, folder: pathlib.Path, **env: str) -> AsyncIterator[Process]:
    """A run of the command; killed at the end of the block, when it has not ended by itself."""
    async with _running(Process, arguments, folder, environment(**env)) as run:
        yield run


@asynccontextmanager
async def server(folder: pathlib.Path, **env: str) -> AsyncIterator[Server]:
    """A server that serves; killed at the end of the block, when it was not stopped."""
    if not env.keys() & {"DATABASE_URL", "DATABASE_PATH"}:
        place_migrated(folder / "house.db")
    async with _running(Server, ("server",), folder, house_environment(folder, **env)) as run:
        await run.listens(env.get("LOG_FILE"))
        yield run


class Dispatcher(Process):
    """A run of `llm-proxy dispatcher`; `url` is where its health is."""

    url = ""

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text of one request."""
        async with aiohttp.ClientSession() as client, client.get(self.url + path, headers=headers) as reply:
            return reply.status, await reply.text()


@asynccontextmanager
async def dispatcher(folder: pathlib.Path, service: str, redis_url: str, **env: str) -> AsyncIterator[Dispatcher]:
    """A dispatcher that delivers; killed at the end of the block, when it was not stopped."""
    env = environment(REDIS_URL=redis_url, EVENT_FILE=str(folder / "events.jsonl"), **env)
    arguments = ("dispatcher", "--service", service, "--addr", "127.0.0.1:0")
    async with _running(Dispatcher, arguments, folder, env) as run:
        text = "listens on "
        run.url = re.split(r'[";]', (await run.until(text)).partition(text)[2])[0]
        yield run
