"""A guarded site with a handler of the test's own, for what happens below the handlers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from llm_proxy.connection import Connection
from llm_proxy.errors import ApiError
from llm_proxy.guard import Guard, Limits
from llm_proxy.peers import Network
from llm_proxy.serving import Calls
from llm_proxy.wire import GuardedRunner, Handler

ROOMY = Limits(body_bytes=64 * 2**20, connections=5000, connections_of_peer=5000)


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    """Answers with the body."""
    return web.Response(body=await request.content.read())


@dataclass
class Site:
    """A running site; `refused` holds the codes of what it refused."""

    runner: GuardedRunner
    guard: Guard
    url: str
    refused: list[str]

    @property
    def connections(self) -> list[Connection]:
        """Those that are open."""
        return [one for one in self.runner.guarded.connections if isinstance(one, Connection)]

    @property
    def connection(self) -> Connection:
        """The only one."""
        [one] = self.connections
        return one


@asynccontextmanager
async def open_site(
    handler: Handler = echo, limits: Limits = ROOMY, calls: Calls | None = None, gateways: tuple[Network, ...] = ()
) -> AsyncIterator[Site]:
    """A site on a free loopback port."""
    refused: list[str] = []

    def count(error: ApiError) -> None:
        refused.append(error.code)

    guard = Guard(limits, count, gateways)
    runner = GuardedRunner(web.Application(), lambda ours: handler, guard, calls)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Site(runner, guard, f"http://127.0.0.1:{runner.addresses[0][1]}", refused)
    finally:
        await runner.cleanup()


def serving_tasks() -> int:
    """The tasks of connections that are open, and of what goes on in them."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    return sum("RequestHandler" in getattr(coroutine, "__qualname__", "") for coroutine in coroutines)
