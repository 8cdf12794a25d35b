"""`llm-proxy setup`: a .env file."""

import pathlib
import sys

import click

from llm_proxy.cli import env_file
from llm_proxy.errors import SettingsError
from llm_proxy.settings import parse_address


@click.command()
@click.option("--env", metavar="FILE", default=".env", show_default=True, help="Where to write.")
@click.option("--addr", metavar="HOST:PORT", help="Where the proxy listens.  [default: :8080]")
@click.option("--admin-addr", metavar="HOST:PORT", help="Where the admin site listens.  [default: 127.0.0.1:8081]")
@click.option("--db", metavar="PATH", help="The SQLite file.  [default: data/llm-proxy.db]")
@click.option("--database-url", metavar="URL", help="A PostgreSQL database in place of SQLite.")
@click.option(
    "--interactive/--no-interactive", default=None, help="Ask; by default on a terminal where no flag says what is wanted."
)
@click.option("--force", is_flag=True, help="Replace an existing file. Tokens and provider keys made with its secrets are lost.")
def command(
    env: str,
    addr: str | None,
    admin_addr: str | None,
    db: str | None,
    database_url: str | None,
    interactive: bool | None,
    force: bool,
) -> None:
    """Write a .env file with a fresh management token and encryption key.

    \b
    llm-proxy setup
    llm-proxy setup --addr :8080 --database-url postgresql://llm:secret@db/llm
    """
    path = pathlib.Path(env)
    given = {"LISTEN_ADDR": addr, "ADMIN_UI_LISTEN_ADDR": admin_addr, "DATABASE_PATH": db, "DATABASE_URL": database_url}
    values = {name: value for name, value in given.items() if value}
    if interactive or (interactive is None and not values and sys.stdin.isatty()):
        values = _ask(values)
    for name in ("LISTEN_ADDR", "ADMIN_UI_LISTEN_ADDR"):
        if name in values:
            _check_address(name, values[name])
    if "DATABASE_URL" in values and "DATABASE_PATH" in values:
        raise SettingsError("--db names a SQLite file, --database-url a PostgreSQL database. Give one of them.")
    env_file.write(path, {**env_file.fresh_secrets(), **values}, replace=force)
    click.echo(f"Wrote {path} (mode 0600). Next: llm-proxy server{'' if env == '.env' else f' --env {env}'}")


def _check_address(name: str, value: str) -> None:
    try:
        parse_address(value)
    except ValueError as error:
        raise SettingsError(f"{name}={value}: not accepted. Give {error}.") from None


def _ask(values: dict[str, str]) -> dict[str, str]:
    asked = dict(values)
    asked["LISTEN_ADDR"] = click.prompt("The proxy listens on", default=values.get("LISTEN_ADDR", ":8080"))
    asked["ADMIN_UI_LISTEN_ADDR"] = click.prompt(
        "The admin site listens on", default=values.get("ADMIN_UI_LISTEN_ADDR", "127.0.0.1:8081")
    )
    if not values.get("DATABASE_PATH"):
        url = click.prompt("PostgreSQL URL (empty for a SQLite file)", default=values.get("DATABASE_URL", ""), show_default=False)
        if url:
            asked["DATABASE_URL"] = url
    if "DATABASE_URL" not in asked:
        asked["DATABASE_PATH"] = click.prompt("SQLite file", default=values.get("DATABASE_PATH", "data/llm-proxy.db"))
    return asked
