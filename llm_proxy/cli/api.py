"""The management API as the commands use it: of a running server, or of this process over the database."""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import pwd
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import click
import orjson
from aiohttp import web

from llm_proxy.cli import options
from llm_proxy.errors import SettingsError, StartError
from llm_proxy.operators import Operators
from llm_proxy.settings import Settings

T = TypeVar("T")

PAGE = 200
SECONDS = 30


class ApiFailure(StartError):
    """The API refused a request, or did not answer."""


class Api:
    """Calls the management API."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def call(self, method: str, path: str, *, json: object = None, params: Mapping[str, str] | None = None) -> Any:
        """One request; returns the decoded answer, None for 204.

        Raises:
            ApiFailure: the API refused, or is not there; the text says why.
        """
        status, raw = await self._answer(method, path, json, params)
        if status == 204:
            return None
        with self._answers_as_we_do(status):
            return orjson.loads(raw)

    async def text(self, path: str, params: Mapping[str, str]) -> str:
        """The text that a GET answers, not decoded.

        Raises:
            ApiFailure: as `call` does.
        """
        status, raw = await self._answer("GET", path, None, params)
        with self._answers_as_we_do(status):
            return raw.decode()

    async def _answer(self, method: str, path: str, json: object, params: Mapping[str, str] | None) -> tuple[int, bytes]:
        try:
            async with self._session.request(method, self._base + path, json=json, params=params) as reply:
                status, raw = reply.status, await reply.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiFailure(
                f"No answer from the server at {self._base}: {reason_of(error)}. "
                "Is it running? --api-url says where it is, --local works without it."
            ) from error
        if status >= 400:
            with self._answers_as_we_do(status):
                answer = orjson.loads(raw)
                raise ApiFailure(f"{answer['error']['message']} ({answer['error']['code']})")
        return status, raw

    @contextlib.contextmanager
    def _answers_as_we_do(self, status: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, LookupError, TypeError) as error:
            raise ApiFailure(
                f"What answers at {self._base}, with status {status}, is no LLM Proxy. --api-url says where it is."
            ) from error

    async def everything(self, path: str, params: Mapping[str, str], most: int) -> list[dict[str, Any]]:
        """The first `most` entries of a list, over as many pages as it takes."""
        return await self.all_named(path, "data", most, params)

    async def all_named(self, path: str, name: str, most: int, params: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The first `most` entries of a list whose pages have them under `name`."""
        found: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while len(found) < most:
            page = await self.call("GET", path, params={**(params or {}), "limit": str(min(PAGE, most - len(found))), **after})
            found += page[name]
            if not page["has_more"]:
                break
            after = {"after": page["next"]}
        return found


def reason_of(error: Exception) -> str:
    """Why there was no answer, in few words."""
    error = getattr(error, "os_error", error)
    if isinstance(error, TimeoutError):
        return "it takes too long"
    number = getattr(error, "errno", None)
    return os.strerror(number) if number and number > 0 else str(error) or type(error).__name__


class LocalOperator(Operators):
    """Whoever may read the settings and the database is the operator."""

    def recognise(self, authorization: str, address: str) -> str:
        """The name of the system's user, for the audit log; the environment cannot change it."""
        try:
            return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
        except KeyError:
            return f"cli:{os.getuid()}"


@asynccontextmanager
async def local_api(settings: Settings) -> AsyncIterator[Api]:
    """The API over the database itself, served to this process alone on a socket that nobody else can open."""
    from llm_proxy.context import open_context
    from llm_proxy.server import create_proxy_app

    if settings.require_encryption_key and not settings.encryption_key:
        raise SettingsError("REQUIRE_ENCRYPTION_KEY is true, and ENCRYPTION_KEY is not set: keys would be stored plain.")
    # Events are the business of a server.
    settings = dataclasses.replace(settings, log_level="error", log_format="text", warnings=(), observability_enabled=False)
    async with contextlib.AsyncExitStack() as stack:
        context = await stack.enter_async_context(open_context(settings))
        context.operators = LocalOperator(())
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
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
        yield Api(session, url or options.own_address(settings))


def run(work: Callable[[Api], Awaitable[T]]) -> T:
    """Run work against the API that the options of the `manage` command chose."""
    said = options.said()
    if "DATABASE_PATH" in said and "local" not in said:
        raise click.UsageError("--db is for --local; a running server knows its own database.")
    if "api_url" in said and "local" in said:
        raise click.UsageError("--api-url names a running server, --local works without one. Give one of them.")

    async def main() -> T:
        settings = options.settings()
        async with local_api(settings) if "local" in said else remote_api(settings, said.get("api_url")) as api:
            return await work(api)

    return asyncio.run(main())


def call(method: str, path: str, json: object = None) -> Any:
    """One request to the API that the options chose."""
    return run(lambda api: api.call(method, path, json=json))


def text(path: str, params: Mapping[str, str]) -> str:
    """The text that a GET answers, of the API that the options chose."""
    return run(lambda api: api.text(path, params))


def listed(path: str, params: Mapping[str, str], most: int) -> list[dict[str, Any]]:
    """The first `most` entries of a list; says at the end when there are more."""
    return _cut(run(lambda api: api.everything(path, params, most + 1)), most)


def listed_as(path: str, name: str, most: int) -> list[dict[str, Any]]:
    """The first `most` entries of a list of /admin/v1, which stand under `name`; says at the end when there are more."""
    found = run(lambda api: api.all_named(path, name, most + 1))
    return _cut(found, most)


def _cut(found: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    if len(found) > most:
        hint = f"There are more than these {most}; --limit shows more."
        click.get_current_context().call_on_close(lambda: click.echo(hint, err=True))
    return found[:most]
