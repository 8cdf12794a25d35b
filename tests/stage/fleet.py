"""Several real instances on one PostgreSQL and one Redis, behind a real gateway, with the dispatcher of their events."""

import asyncio
import secrets
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from stage.asking import ASKING, CHAT
from stage.certificates import new_authority
from stage.gateways import Instance, gateway
from stage.logs import lines_of
from stage.postgres import free_port
from stage.processes import Server, dispatcher, server
from stage.redis import RedisServer

NAMES = ("a", "b", "c")


@dataclass
class Tally:
    """What became of the calls of a load.

    Attributes:
        whole: ids of the requests whose answer came whole.
        failed: what went wrong with the others.
    """

    whole: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Slot:
    """The place of one instance: its ports and its folder stay when it is started anew."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir()
        self.ports = free_port(), free_port()
        self._env = {**env, "LISTEN_ADDR": f"127.0.0.1:{self.ports[0]}", "ADMIN_UI_LISTEN_ADDR": f"127.0.0.1:{self.ports[1]}"}
        self._stack = AsyncExitStack()
        self.server: Server

    @property
    def url(self) -> str:
        """Its proxy site, past the gateway."""
        return f"http://127.0.0.1:{self.ports[0]}"

    async def start(self) -> None:
        """Start it; returns once it serves."""
        self.server = await self._stack.enter_async_context(server(self.folder, **self._env))

    async def stop(self) -> None:
        """Stop it in order, which must go well."""
        assert await self.server.stopped() == 0, self.server.err[-5:]
        await self._stack.aclose()

    async def kill(self) -> None:
        """End it without warning."""
        self.server.send(signal.SIGKILL)
        await self._stack.aclose()


class Fleet:
    """The instances, and clients of theirs; `sink` is the file where events arrive."""

    def __init__(self, slots: list[Slot], url: str, client: aiohttp.ClientSession, sink: Path) -> None:
        self.slots, self.url, self.client, self._sink = slots, url, client, sink

    async def manage(self, number: int, method: str, path: str, json: object = None) -> Any:
        """An act of the operator at one instance, which must go well."""
        return await self.slots[number].server.manage(method, path, json)

    async def token(self, api_base: str, **fields: Any) -> dict[str, Any]:
        """A token of a new project whose key leads to `api_base`."""
        return await self.slots[0].server.token_for(api_base, "sk-" + secrets.token_hex(16), **fields)

    async def answer(self, url: str, token: str, **more: Any) -> aiohttp.ClientResponse:
        """The answer to one chat, read to its end."""
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
        async with self.client.post(url + CHAT, json={**ASKING, **more}, headers=headers) as reply:
            await reply.read()
            return reply

    async def statuses(self, token: str) -> list[int]:
        """What each instance says to a call, asked directly."""
        return [(await self.answer(slot.url, token)).status for slot in self.slots]

    async def until_everywhere(self, seconds: float, condition: Callable[[Slot], Awaitable[bool]]) -> float:
        """Ask each instance until a condition holds there; the seconds it took on the last one."""
        began = time.monotonic()

        async def ask(slot: Slot) -> None:
            while not await condition(slot):
                pass

        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(ask, self.slots))
        return round(time.monotonic() - began, 3)

    @asynccontextmanager
    async def load(self, token: str, callers: int = 4) -> AsyncIterator[Tally]:
        """Calls through the gateway while the block runs, every second one a stream, each whole before its caller's next."""
        tally, going = Tally(), True

        async def caller(stream: bool) -> None:
            while going:
                await self._note(tally, token, stream)
                # A rate that leaves the machine to others.
                await asyncio.sleep(0.03)

        tasks = [asyncio.ensure_future(caller(number % 2 == 0)) for number in range(callers)]
        try:
            yield tally
        finally:
            going = False
            await asyncio.gather(*tasks)

    async def _note(self, tally: Tally, token: str, stream: bool) -> None:
        id = secrets.token_hex(8)
        headers = {"Authorization": f"Bearer {token}", "X-Request-ID": id}
        try:
            async with self.client.post(self.url + CHAT, json={**ASKING, "stream": stream}, headers=headers) as reply:
                text = await reply.text()
        except aiohttp.ClientError as error:
            tally.failed.append(f"{'stream' if stream else 'call'}: {error!r}")
            return
        if reply.status == 200 and (not stream or text.endswith("data: [DONE]\n\n")):
            tally.whole.append(id)
        else:
            tally.failed.append(f"{'stream' if stream else 'call'}: {reply.status} {text[-200:]!r}")

    def delivered(self) -> set[tuple[str, str]]:
        """The events that arrived at the sink: the id of the request, the event's own, the same whenever it comes again."""
        return {(event["request_id"], event["id"]) for event in lines_of(self._sink)}


@asynccontextmanager
async def open_fleet(folder: Path, database_url: str, redis: RedisServer) -> AsyncIterator[Fleet]:
    """Three instances with nothing in common but PostgreSQL and Redis, behind HAProxy."""
    env = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis.uri,
        "DISTRIBUTED_RATE_LIMIT_ENABLED": "true",
        # Where the machine is so busy that Redis is late, a call is not let through by the instance alone.
        "DISTRIBUTED_RATE_LIMIT_FALLBACK": "false",
        "LLM_PROXY_EVENT_BUS": "redis-streams",
        "TRUSTED_PROXIES": "127.0.0.1",
        # The gateway asks every 100 ms, and has to ask twice.
        "DRAIN_DELAY": "500ms",
        "SHUTDOWN_TIMEOUT": "10s",
    }
    slots = [Slot(folder / name, env) for name in NAMES]
    authority = new_authority(folder)
    places = [Instance(*(f"http://127.0.0.1:{port}" for port in slot.ports)) for slot in slots]
    made = gateway("haproxy", folder / "gateway", authority.pair(), *places)
    trust = ssl.create_default_context(cafile=authority.file)
    async with AsyncExitStack() as stack:
        for slot in slots:
            stack.push_async_callback(slot._stack.aclose)
        starts = [asyncio.ensure_future(slot.start()) for slot in slots]
        await stack.enter_async_context(dispatcher(folder, "file", redis.uri))
        await asyncio.gather(*starts)
        await stack.enter_async_context(made.running())
        connector = aiohttp.TCPConnector(ssl=trust, limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Fleet(slots, made.url, client, folder / "events.jsonl")
