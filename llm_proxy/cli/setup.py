"""`llm-proxy setup`: a .env file, or what systemd needs."""

import pathlib
import sys

import click

from llm_proxy.cli import env_file, options, units
from llm_proxy.errors import StartError
from llm_proxy.settings import Settings

NEXT = """\
Next, as root:
  systemctl daemon-reload
  systemctl enable --now llm-proxy.socket llm-proxy.service
  llm-proxy health --ready
"""
NO_USER = f"""\
There is no user {units.USER}, as whom the service runs. First, as root:
  useradd --system --home-dir {units.STATE} --shell /usr/sbin/nologin {units.USER}"""


def postgres_url(text: str) -> str:
    """The type of options that name a PostgreSQL database; nothing is accepted too."""
    if text and not text.startswith(("postgresql://", "postgres://")):
        raise click.BadParameter("give a URL such as postgresql://user:password@host:5432/name.")
    return text


@click.command()
@click.option("--env", metavar="FILE", default=".env", show_default=True, help="Where to write.")
@options.addr
@options.admin_addr
@options.database
@options.kept(
    "--database-url",
    "DATABASE_URL",
    metavar="URL",
    type=postgres_url,
    help="A PostgreSQL database in place of SQLite (DATABASE_URL).",
)
@click.option(
    "--interactive/--no-interactive", default=None, help="Ask; by default on a terminal where no flag says what is wanted."
)
@click.option("--force", is_flag=True, help="Replace an existing file. Tokens and provider keys made with its secrets are lost.")
@click.option(
    "--systemd", is_flag=True, help="Write units, settings and secrets for systemd instead; settings and secrets there stay."
)
@click.option("--root", metavar="DIR", default="/", show_default=True, help="With --systemd: below which folder to write.")
@click.option("--program", metavar="FILE", help="With --systemd: the program that the units start.  [default: this one]")
def command(env: str, interactive: bool | None, force: bool, systemd: bool, root: str, program: str | None) -> None:
    """Write a .env file with a fresh management token and encryption key.

    \b
    Examples:
      llm-proxy setup
      llm-proxy setup --addr :8080 --database-url postgresql://llm:secret@db/llm
      llm-proxy setup --systemd
    """
    path, values = pathlib.Path(env), options.said()
    if "DATABASE_URL" in values and "DATABASE_PATH" in values:
        raise click.UsageError("--db names a SQLite file, --database-url a PostgreSQL database. Give one of them.")
    if systemd:
        if force or interactive or env != ".env":
            raise click.UsageError("--systemd goes with none of --env, --interactive and --force.")
        return _for_systemd(pathlib.Path(root), pathlib.Path(program) if program else units.own_program(), values)
    if path.exists() and not force:
        raise StartError(
            f"{path} exists already. Its secrets may be in use, so it is replaced only with --force; --env names another file."
        )
    if interactive or (interactive is None and not values and sys.stdin.isatty()):
        values = _ask(values)
    env_file.write(path, {**env_file.fresh_secrets(), **values})
    return click.echo(f"Wrote {path} (mode 0600). Next: llm-proxy server{'' if env == '.env' else f' --env {env}'}")


def _for_systemd(root: pathlib.Path, program: pathlib.Path, values: dict[str, str]) -> None:
    """Below the real root, the user must be there: the settings are readable to it alone."""
    real = root == pathlib.Path("/")
    if real and not units.user_exists():
        raise StartError(NO_USER)
    written = units.write(root, program, values)
    click.echo("Wrote:\n" + "".join(f"  {path}\n" for path in written) + (NEXT if real else ""), nl=False)


def _ask(values: dict[str, str]) -> dict[str, str]:
    asked, default = dict(values), Settings()
    for name, what, usual in (
        ("LISTEN_ADDR", "The proxy listens on", default.listen_addr),
        ("ADMIN_UI_LISTEN_ADDR", "The admin site listens on", default.admin_ui_listen_addr),
    ):
        asked[name] = click.prompt(what, default=values.get(name, usual), value_proc=options.address)
    if "DATABASE_URL" in values or "DATABASE_PATH" in values:
        return asked
    if url := click.prompt("PostgreSQL URL (empty for a SQLite file)", default="", show_default=False, value_proc=postgres_url):
        return {**asked, "DATABASE_URL": url}
    return {**asked, "DATABASE_PATH": click.prompt("SQLite file", default=default.database_path)}
