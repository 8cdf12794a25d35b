"""`llm-proxy check`: everything a start needs, without serving."""

import asyncio
import re
from collections.abc import AsyncIterator

import click

from llm_proxy.cli import options
from llm_proxy.context import Context, open_context, read_profiles
from llm_proxy.db import Database, migrate
from llm_proxy.errors import ApiError, StartError
from llm_proxy.providers import Provider, every
from llm_proxy.providers.profiles import Profile
from llm_proxy.settings import Settings, check_serving
from llm_proxy.upstream import Request

OLDEST_POSTGRES = 13
MOST_PROVIDERS = 100


@click.command()
@options.database
@options.profiles
@options.env_file
@click.option("--offline", is_flag=True, help="Do not call the providers.")
def command(db: str | None, config: str | None, env: str | None, offline: bool) -> None:
    """Check settings, profiles, database and providers, without serving; exit 1 when something is wrong."""
    settings = options.settings_from(env, db=db, config=config)
    check_serving(settings)
    good = True
    for warning in settings.warnings:
        _say("warning", warning)
    _say("ok", f"settings: {len(settings.sources)} set, the rest by default")
    _say("ok", f"profiles: {', '.join(read_profiles(settings).apis)}")
    migrate.missing(settings)
    good = asyncio.run(_check(settings, offline))
    raise SystemExit(0 if good else 1)


def _say(state: str, text: str) -> None:
    colour = {"ok": "green", "warning": "yellow", "wrong": "red"}[state]
    click.secho(f"{state:8}", fg=colour, nl=False)
    click.echo(text)


async def _check(settings: Settings, offline: bool) -> bool:
    good = True
    async with open_context(settings) as context:
        _say("ok", f"database: {await _database_version(settings, context.database)}, schema {migrate.applied(settings)[-1]}")
        async for provider, problem in _providers(context, offline):
            good = good and not problem
            _say("wrong" if problem else "ok", f"provider {provider.name} ({provider.id}){f': {problem}' if problem else ''}")
    return good


async def _database_version(settings: Settings, database: Database) -> str:
    if settings.db_driver == "sqlite":
        row = await database.fetch_one(
            "SELECT sqlite_version() AS version, (SELECT integrity_check FROM pragma_integrity_check(1)) AS state"
        )
        assert row is not None
        if row["state"] != "ok":
            raise StartError(f"The SQLite file {settings.database_path} is damaged: {row['state']}. Restore a backup.")
        return f"SQLite {row['version']}"
    row = await database.fetch_one("SELECT version() AS version")
    found = re.search(r"PostgreSQL (\d+)[\d.]*", str(row and row["version"]))
    if not found or int(found[1]) < OLDEST_POSTGRES:
        raise StartError(f"PostgreSQL {OLDEST_POSTGRES} or newer is needed; this is {found[0] if found else 'something else'}.")
    return found[0]


async def _providers(context: Context, offline: bool) -> AsyncIterator[tuple[Provider, str]]:
    for provider in await every(context.database, context.vault, MOST_PROVIDERS):
        profile = context.profiles.apis.get(provider.provider_type)
        if not provider.is_enabled:
            continue
        if provider.problem or profile is None:
            yield provider, provider.problem or f"there is no profile {provider.provider_type}"
        else:
            yield provider, "" if offline else await _call(context, provider, profile)


async def _call(context: Context, provider: Provider, profile: Profile) -> str:
    """What is wrong with a provider, by the list of its models, which costs nothing; any answer but a refused key is good."""
    assert provider.api_key is not None
    auth = profile.auth_of("/v1/models")
    base = provider.api_base or profile.base_url
    url = base + ("/models" if base.endswith("/v1") else "/v1/models")
    headers = [*profile.default_headers.items(), (auth.header, auth.value(provider.api_key.reveal()))]
    request = Request("GET", url, headers, None, None, profile, base == profile.base_url, lambda: None)
    try:
        answer = await context.upstream.open(request)
    except ApiError as error:
        return error.message
    answer.abort()
    return f"the provider refuses the key ({answer.status})" if answer.status in (401, 403) else ""
