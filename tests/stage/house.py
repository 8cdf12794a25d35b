"""The whole program, for the length of a test: sites on free ports, a project with its key, its tokens."""

import functools
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_proxy import settings as all_settings
from llm_proxy.acts import projects, tokens
from llm_proxy.audit import Who
from llm_proxy.context import Context, open_context
from llm_proxy.db import migrate
from llm_proxy.events import Event
from llm_proxy.server import Sites, open_sites
from llm_proxy.settings import Settings
from stage.postgres import Postgres
from stage.secrets import used

PROVIDER_KEY = "sk-provider-" + secrets.token_hex(16)
MANAGEMENT_TOKEN = "management-" + secrets.token_hex(24)
ENCRYPTION_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
TESTER = Who("tester")


def settings_for(folder: Path, **more: str) -> Settings:
    """Settings of a house in `folder`: free loopback ports, SQLite unless DATABASE_URL is given."""
    given = {
        "LISTEN_ADDR": "127.0.0.1:0",
        "ADMIN_UI_LISTEN_ADDR": "127.0.0.1:0",
        "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "ALLOW_PRIVATE_UPSTREAMS": "true",
        "SHUTDOWN_TIMEOUT": "2s",
        "EVENT_DIR": str(folder / "events"),
        "EVENT_FILE": str(folder / "events.jsonl"),
        **({} if "DATABASE_URL" in more else {"DATABASE_PATH": str(folder / "house.db")}),
    }
    return all_settings.load(overrides={**given, **more})


@dataclass
class House:
    """A running program; `events` holds every event since it opened."""

    context: Context
    sites: Sites
    events: list[Event] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The proxy site."""
        return self.sites.proxy

    async def project(self, api_base: str, *, provider_type: str = "openai", name: str = "", key: str = PROVIDER_KEY) -> str:
        """A project with one key; returns its id."""
        if self.context.settings.encryption_key:
            used(key)
        given = {"name": name or secrets.token_hex(6), "api_key": key, "provider_type": provider_type, "api_base": api_base}
        return (await projects.create(self.context, TESTER, given)).id

    async def token(self, project_id: str, **fields: Any) -> str:
        """A token of a project."""
        _, secret = await tokens.create(self.context, TESTER, {"project_id": project_id, **fields})
        return used(secret.reveal())

    async def token_for(self, api_base: str, *, provider_type: str = "openai", **fields: Any) -> str:
        """A token of a new project whose key leads to `api_base`."""
        return await self.token(await self.project(api_base, provider_type=provider_type), **fields)


@functools.cache
def _migrated() -> bytes:
    """A migrated, empty SQLite database; migrating anew for each of a thousand tests would take minutes."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(Path(folder))
        migrate.up(settings)
        return Path(settings.database_path).read_bytes()


def migrated(settings: Settings) -> Settings:
    """The settings, their SQLite database in place when it was not there."""
    if settings.db_driver == "sqlite":
        place_migrated(Path(settings.database_path))
    return settings


def place_migrated(path: Path) -> None:
    """A migrated SQLite database where none was."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_migrated())
        path.chmod(0o600)


@functools.cache
def _migrated_in(postgres: Postgres) -> str:
    """The name of a migrated, empty database that nobody uses."""
    migrate.up(settings_for(Path(), DATABASE_URL=postgres.create("house_template")))
    return "house_template"


def migrated_database(postgres: Postgres) -> str:
    """The URL of a new database, migrated."""
    return postgres.create(f"t{secrets.token_hex(16)}", template=_migrated_in(postgres))


@asynccontextmanager
async def open_house(settings: Settings, **more: Any) -> AsyncIterator[House]:
    """The program with these settings; `more` goes to `open_context`."""
    for secret in (*settings.management_token, *settings.encryption_key, settings.metrics_token):
        used(secret.reveal())
    async with open_context(migrated(settings), **more) as context, open_sites(context) as sites:
        house = House(context, sites)
        context.bus.read_by(house.events.append)
        yield house
