"""The management API as the commands use it: of a running server, or of this process over the database."""

import asyncio
import contextlib
import dataclasses
import getpass
import pathlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import click
from aiohttp import web

from llm_proxy.cli import options
from llm_proxy.errors import SettingsError, StartError
from llm_proxy.settings import Settings

T = TypeVar("T")
Call = Callable[..., Awaitable[Any]]


class ApiFailure(StartError):
    """The API refused a request."""


class Api:
    """Calls the management API."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def call(
        self, method: str, path: str, *, json: Mapping[str, object] | None = None, params: Mapping[str, str] | None = None
    ) -> Any:
        """One request; returns the decoded answer, None for 204.

        Raises:
            ApiFailure: the API refused, or is not there; the text says why.
        """
        try:
            async with self._session.request(method, self._base + path, json=json, params=params) as reply:
                if reply.status == 204:
                    return None
                answer = await reply.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiFailure(
                f"No answer from the server at {self._base}: {error}. "
                "Is it running? --api-url says where it is, --local works without it."
            ) from error
        if reply.status >= 400:
            raise ApiFailure(f"{answer['error']['message']} ({answer['error']['code']})")
        return answer

    async def everything(self, path: str, params: Mapping[str, str], most: int) -> list[dict[str, Any]]:
        """The first `most` entries of a list, over as many pages as it takes."""
        found: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while len(found) < most:
            page = await self.call("GET", path, params={**params, "limit": str(min(200, most - len(found))), **after})
            found += page["data"]
            if not page["has_more"]:
                break
            after = {"after": page["next"]}
        return found


class LocalOperator:
    """Whoever may read the settings and the database is the operator."""

    def recognise(self, authorization: str, address: str) -> str:
        """The name of the system's user, for the audit log."""
        return f"cli:{getpass.getuser()}"


@asynccontextmanager
async def local_api(settings: Settings) -> AsyncIterator[Api]:
    """The API over the database itself, served to this process alone on a socket that nobody else can open."""
    from llm_proxy.context import open_context
    from llm_proxy.server import create_proxy_app

    settings = dataclasses.replace(settings, log_level="error", warnings=())
    async with contextlib.AsyncExitStack() as stack:
        context = await stack.enter_async_context(open_context(settings))
        context.operators = LocalOperator()  # type: ignore[assignment]
        runner = web.AppRunner(create_proxy_app(context), access_log=None)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        path = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-proxy")), "api")
        await web.UnixSite(runner, str(path)).start()
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))))
        yield Api(session, "http://local")


@asynccontextmanager
async def remote_api(settings: Settings, url: str | None) -> AsyncIterator[Api]:
    """The API of a running server."""
    if not settings.management_token:
        raise SettingsError("MANAGEMENT_TOKEN is not set, and the server asks for it. With --local none is needed.")
    headers = {"Authorization": f"Bearer {settings.management_token[0].reveal()}"}
    base = (url or _own_address(settings)).rstrip("/")
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield Api(session, base)


def _own_address(settings: Settings) -> str:
    host, _, port = settings.listen_addr.rpartition(":")
    return f"http://{host if host not in ('', '0.0.0.0', '[::]') else '127.0.0.1'}:{port}"


def run(work: Callable[[Api], Awaitable[T]]) -> T:
    """Run work against the API that the options of the `manage` command chose."""
    chosen = click.get_current_context().find_object(dict) or {}

    async def main() -> T:
        settings = options.settings_from(chosen.get("env"), db=chosen.get("db"))
        opening = local_api(settings) if chosen.get("local") else remote_api(settings, chosen.get("api_url"))
        async with opening as api:
            return await work(api)

    return asyncio.run(main())
