"""`llm-proxy check`: everything a start needs, without serving."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator

import click
from redis.asyncio import Redis
from redis.exceptions import RedisError

from llm_proxy.acts import checks
from llm_proxy.cli import options
from llm_proxy.context import Context, open_context, read_profiles
from llm_proxy.db import Database, migrate
from llm_proxy.errors import ApiError, StartError
from llm_proxy.providers import Provider, every, problem_of
from llm_proxy.redis_client import eviction_warning
from llm_proxy.settings import Settings, check_serving

OLDEST_POSTGRES = 13
OLDEST_REDIS = (6, 2)
MOST_PROVIDERS = 100
PROVIDER_SECONDS = 15.0


@click.command()
@options.database
@options.profiles
@options.env_file
@click.option("--offline", is_flag=True, help="Do not call the providers.")
def command(offline: bool) -> None:
    """Check settings, profiles, events, database, Redis and providers without serving. Nothing is changed; exit 1 when one is
    wrong.

    \b
    Examples:
      llm-proxy check
      llm-proxy check --offline --config new_providers.yaml
    """
    settings = options.settings()
    check_serving(settings)
    for warning in settings.warnings:
        _say("warning", warning)
    _say("ok", f"settings: {len(settings.sources)} set, the rest by default")
    _say("ok", f"profiles: {', '.join(read_profiles(settings).apis)}")
    _check_events(settings)
    todo = _to_do(settings)
    with _stand_in(settings) if todo else contextlib.nullcontext(settings) as openable, _no_log():
        bad = asyncio.run(_check(openable, todo, offline))
    if bad:
        raise StartError(f"{bad} of the providers cannot be used.")


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """What the log would say of a problem, the report says."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _say(state: str, text: str) -> None:
    colour = {"ok": "green", "warning": "yellow", "wrong": "red"}[state]
    click.secho(f"{state:8}", fg=colour, nl=False)
    click.echo(text)


def _check_events(settings: Settings) -> None:
    """A start would go on without its log of events, and lose them; better to know before.

    Raises:
        StartError: it could not be written.
    """
    if not settings.observability_enabled:
        return
    _check_room(f"EVENT_DIR={settings.event_dir}", pathlib.Path(settings.event_dir))
    if "file" in settings.event_sinks:
        _check_room(f"EVENT_FILE={settings.event_file}", pathlib.Path(settings.event_file).parent)
    _say("ok", f"events: {settings.event_dir}, {', '.join(settings.event_sinks) or 'no sinks'}")


def _check_room(setting: str, folder: pathlib.Path) -> None:
    """Hold that files can be made in a folder, or the folder itself in the nearest one that is there."""
    path = folder.absolute()
    nearest = next(path for path in (path, *path.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise StartError(f"{setting}: nothing can be written to {nearest}.")


def _to_do(settings: Settings) -> str:
    """What the next start is going to do to the database, empty when nothing.

    Raises:
        StartError: it could not.
    """
    if settings.db_driver == "sqlite":
        path = pathlib.Path(settings.database_path).absolute()
        if not path.exists():
            _check_room(f"DATABASE_PATH={settings.database_path}", path.parent)
            return f"{settings.database_path} is not there yet; the first start makes it"
    missing = migrate.missing(settings)
    return f"the next start applies {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def _stand_in(settings: Settings) -> Iterator[Settings]:
    """The same settings on a throw-away database, where opening the real one would change it."""
    with tempfile.TemporaryDirectory(prefix="llm-proxy") as folder:
        yield dataclasses.replace(settings, db_driver="sqlite", database_path=f"{folder}/check.db")


async def _check(settings: Settings, todo: str, offline: bool) -> int:
    """Check what only an opened context can tell; returns how many providers cannot be used."""
    # A log of events would be made, and perhaps delivered.
    async with open_context(dataclasses.replace(settings, observability_enabled=False)) as context:
        _say("ok", f"database: {todo or await _state(settings, context.database)}")
        if context.redis is not None:
            await _check_redis(settings, context.redis)
        found = await every(context.database, context.vault, MOST_PROVIDERS + 1)
        if len(found) > MOST_PROVIDERS:
            _say("warning", f"there are more than {MOST_PROVIDERS} providers; the first {MOST_PROVIDERS} are looked at")
        enabled = [provider for provider in found[:MOST_PROVIDERS] if provider.is_enabled]
        problems = await asyncio.gather(*(_problem(context, provider, offline) for provider in enabled))
    for provider, problem in zip(enabled, problems, strict=True):
        _say("wrong" if problem else "ok", f"provider {provider.name} ({provider.id}){problem and f': {problem}'}")
    return sum(map(bool, problems))


async def _state(settings: Settings, database: Database) -> str:
    """What the database is.

    Raises:
        StartError: it is damaged or too old.
    """
    schema = f"schema {migrate.known()[-1]}"
    if settings.db_driver == "sqlite":
        sql = "SELECT sqlite_version() AS version, integrity_check AS state FROM pragma_integrity_check(1)"
        row = await database.fetch_one(sql)
        assert row is not None
        if row["state"] != "ok":
            raise StartError(f"The SQLite file {settings.database_path} is damaged: {row['state']}. Restore a backup.")
        return f"SQLite {row['version']}, {schema}"
    row = await database.fetch_one(
        "SELECT current_setting('server_version') AS version, current_setting('server_version_num') AS number"
    )
    assert row is not None
    if int(row["number"]) // 10_000 < OLDEST_POSTGRES:
        raise StartError(f"PostgreSQL {OLDEST_POSTGRES} or newer is needed; this is {row['version']}.")
    return f"PostgreSQL {row['version']}, {schema}"


async def _check_redis(settings: Settings, client: Redis) -> None:
    """A start would go on without Redis; better to know before.

    Raises:
        StartError: it does not answer, or is too old.
    """
    try:
        version = str((await client.info("server"))["redis_version"])
        warning = await eviction_warning(client)
    except (RedisError, OSError) as error:
        raise StartError(f"REDIS_URL: Redis cannot be used: {error}") from error
    if tuple(map(int, version.split(".")[:2])) < OLDEST_REDIS:
        raise StartError(f"REDIS_URL: Redis 6.2 or newer is needed; this is {version}.")
    if warning and (settings.distributed_rate_limit_enabled or settings.llm_proxy_event_bus == "redis-streams"):
        _say("warning", warning)
    _say("ok", f"redis: speaks as Redis {version}")


async def _problem(context: Context, provider: Provider, offline: bool) -> str:
    """What is wrong with a provider, empty when nothing."""
    if problem := problem_of(provider, context.profiles):
        return problem
    if offline:
        return ""
    profile = context.profiles.get(provider.provider_type)
    ask = checks.list_models(profile, provider.api_base or profile.base_url)
    try:
        return checks.wrong_of_list(await checks.status_of(context, provider, ask, PROVIDER_SECONDS)) or ""
    except ApiError as error:
        return error.message
