"""`llm-proxy migrate`: the schema, the encryption of what is stored."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import click

from llm_proxy.cli import options
from llm_proxy.cli.output import echo_table
from llm_proxy.db import migrate, open_database
from llm_proxy.errors import SettingsError, StartError
from llm_proxy.providers import sealing
from llm_proxy.settings import Settings
from llm_proxy.vault import Vault

F = TypeVar("F", bound=Callable[..., Any])
REWRITE = {"sqlite": ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"), "postgres": ("VACUUM FULL providers",)}


def on_database(function: F) -> F:
    """The options that say which database is meant."""
    return options.database(options.env_file(function))


@click.group()
@on_database
def command() -> None:
    """Look after the database's schema and its encryption. `llm-proxy server` migrates by itself when it starts.

    \b
    Examples:
      llm-proxy migrate status
      llm-proxy migrate encrypt --env /etc/llm-proxy.env
    """


@command.command()
@on_database
def up() -> None:
    """Apply the migrations that are missing.

    \b
    Example:
      llm-proxy migrate up
    """
    done = migrate.up(options.settings())
    click.echo(f"Applied {', '.join(done)}." if done else "Nothing to do.")


@command.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_database
def down(yes: bool) -> None:
    """Roll the newest migration back. The data in what it made is lost.

    \b
    Example:
      llm-proxy migrate down
    """
    settings = options.settings()
    newest = migrate.applied(settings)[-1:]
    if not newest:
        return click.echo("Nothing to do.")
    if not yes:
        click.confirm(f"This rolls {newest[0]} back, and what it made is lost. Go on?", abort=True)
    return click.echo(f"Rolled back {', '.join(migrate.down(settings))}.")


@command.command()
@on_database
def status() -> None:
    """List the migrations, applied and missing.

    \b
    Example:
      llm-proxy migrate status --db /var/lib/llm-proxy/llm-proxy.db
    """
    missing = migrate.missing(options.settings())
    echo_table(("migration", "state"), [(name, "missing" if name in missing else "applied") for name in migrate.known()])


@command.command()
@on_database
def version() -> None:
    """Print the newest migration that is applied.

    \b
    Example:
      llm-proxy migrate version
    """
    click.echo((migrate.applied(options.settings()) or ["none"])[-1])


@command.command()
@on_database
def encrypt() -> None:
    """Encrypt all provider keys with the newest encryption key. Those that are stored plain, and those that are encrypted
    with an older key, are written anew. It may be stopped and repeated, and the server may run meanwhile.

    \b
    Example, to replace the encryption key:
      1. put a new key in front:      ENCRYPTION_KEY=NEW,OLD     (then restart the server)
      2. encrypt with it:             llm-proxy migrate encrypt
      3. take the old key away:       ENCRYPTION_KEY=NEW         (then restart the server)
    """
    settings = options.settings()
    if not settings.encryption_key:
        raise SettingsError("ENCRYPTION_KEY is not set. `openssl rand -base64 32` makes one.")
    done, failed = asyncio.run(_encrypt(settings))
    click.echo(f"Provider keys that are encrypted anew: {done}.")
    if failed:
        raise StartError("Not all could be encrypted:\n  " + "\n  ".join(failed))


async def _encrypt(settings: Settings) -> tuple[int, list[str]]:
    vault = Vault(settings.encryption_key)
    async with open_database(settings) as database:
        plain = (await sealing.count(database, vault))["plain"]
        done, failed = await sealing.seal_all(database, vault)
        if plain:
            # A database keeps what was overwritten in its free space, until it is written anew.
            for statement in REWRITE[settings.db_driver]:
                await database.execute(statement)
    return done, failed


@command.command("encrypt-status")
@on_database
def encrypt_status() -> None:
    """Count the provider keys by how they are stored.

    \b
    Example:
      llm-proxy migrate encrypt-status
    """
    settings = options.settings()

    async def work() -> dict[str, int]:
        async with open_database(settings) as database:
            return await sealing.count(database, Vault(settings.encryption_key))

    echo_table(("stored", "keys"), list(asyncio.run(work()).items()))


@command.command("break-lock")
@on_database
def break_lock() -> None:
    """Remove a lock that a killed tool has left. Our own locks end with their process; yoyo's do not.

    \b
    Example:
      llm-proxy migrate break-lock
    """
    migrate.break_lock(options.settings())
    click.echo("No lock is left.")
