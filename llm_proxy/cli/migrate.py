"""`llm-proxy migrate`: the schema, the encryption of what is stored."""

import asyncio

import click

from llm_proxy.cli import options
from llm_proxy.cli.output import echo_table
from llm_proxy.db import migrate, open_database
from llm_proxy.errors import SettingsError
from llm_proxy.providers import sealing
from llm_proxy.settings import Settings
from llm_proxy.vault import Vault


@click.group()
@options.database
@options.env_file
@click.pass_context
def command(ctx: click.Context, db: str | None, env: str | None) -> None:
    """Look after the database's schema and its encryption. `llm-proxy server` migrates by itself when it starts."""
    ctx.obj = options.settings_from(env, db=db)


@command.command()
@click.pass_obj
def up(settings: Settings) -> None:
    """Apply the migrations that are missing."""
    done = migrate.up(settings)
    click.echo(f"Applied {', '.join(done)}." if done else "Nothing to do.")


@command.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def down(settings: Settings, yes: bool) -> None:
    """Roll the newest migration back. The data in what it made is lost."""
    newest = migrate.applied(settings)[-1:]
    if not newest:
        return click.echo("Nothing to do.")
    if not yes:
        click.confirm(f"This rolls {newest[0]} back, and what it made is lost. Go on?", abort=True)
    return click.echo(f"Rolled back {', '.join(migrate.down(settings))}.")


@command.command()
@click.pass_obj
def status(settings: Settings) -> None:
    """List the migrations, applied and missing."""
    missing = migrate.missing(settings)
    echo_table(("migration", "state"), [(name, "missing" if name in missing else "applied") for name in migrate.known()])


@command.command()
@click.pass_obj
def version(settings: Settings) -> None:
    """Print the newest migration that is applied."""
    click.echo((migrate.applied(settings) or ["none"])[-1])


@command.command()
@click.pass_obj
def encrypt(settings: Settings) -> None:
    """Encrypt what is stored plain, and what is encrypted with an older key, with the newest. May be stopped and repeated."""
    if not settings.encryption_key:
        raise SettingsError("ENCRYPTION_KEY is not set. `openssl rand -base64 32` makes one.")

    async def work() -> tuple[int, list[str]]:
        async with open_database(settings) as database:
            return await sealing.seal_all(database, Vault(settings.encryption_key))

    done, failed = asyncio.run(work())
    click.echo(f"Encrypted {done} provider keys with the newest key.")
    for problem in failed:
        click.secho(problem, fg="red", err=True)
    if failed:
        raise SystemExit(1)


@command.command("encrypt-status")
@click.pass_obj
def encrypt_status(settings: Settings) -> None:
    """Count the provider keys by how they are stored."""

    async def work() -> dict[str, int]:
        async with open_database(settings) as database:
            return await sealing.count(database, Vault(settings.encryption_key))

    echo_table(("stored", "keys"), list(asyncio.run(work()).items()))


@command.command("break-lock")
@click.pass_obj
def break_lock(settings: Settings) -> None:
    """Remove the lock that another migration tool, killed in its work, has left. Our own locks end with their process."""
    migrate.break_lock(settings)
    click.echo("No lock is left.")
