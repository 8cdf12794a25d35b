"""`llm-proxy backup`: database, events and settings in one archive."""

import pathlib

import click

from llm_proxy.backup.making import Made, make
from llm_proxy.backup.manifest import Manifest
from llm_proxy.cli import env_file, options
from llm_proxy.errors import StartError
from llm_proxy.secret import Secret
from llm_proxy.settings import TABLE, Settings
from llm_proxy.settings.values import SECRET_KINDS, written

HEADER = "# Settings of LLM Proxy when this backup was made. Secrets are left out: set them again where you restore it.\n\n"


@click.command()
@click.argument("target", metavar="FILE-or-DIR")
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Keep the newest N backups of the folder, remove older ones.")
@options.database
@options.env_file
def command(target: str, keep: int | None) -> None:
    """Back up the SQLite database, the log of events and the settings without their secrets into one archive (tar.gz, mode
    0600), while the server runs. In a folder the archive gets a name with the time. Keep ENCRYPTION_KEY elsewhere: the
    archive holds only its fingerprint. Of PostgreSQL the database is left to pg_dump.

    \b
    Examples:
      llm-proxy backup /var/backups/llm-proxy/ --keep 14 --env /etc/llm-proxy/llm-proxy.env
      llm-proxy backup before-the-upgrade.tar.gz
    """
    path = pathlib.Path(target)
    if target.endswith("/"):
        _make_folder(path)
    if keep and not path.is_dir():
        raise click.UsageError(f"--keep counts the backups in a folder, and {target} is none.")
    settings = options.settings()
    made = make(settings, path, settings_text(settings), keep)
    click.echo(f"Wrote {made.path} (mode 0600): {told(made.manifest)}.")
    _advise(settings, made)
    for removed in made.removed:
        click.echo(f"Removed {removed}.")


def _make_folder(path: pathlib.Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"{path}: the folder cannot be made: {error.strerror}.") from error


def settings_text(settings: Settings) -> str:
    """The settings that were set, as a file of settings; of secrets only the names."""
    values, secrets = dict[str, str](), list[str]()
    for field in TABLE:
        name, value = field.name.upper(), getattr(settings, field.name)
        if name not in settings.sources:
            continue
        if field.metadata["parse"] in SECRET_KINDS or isinstance(value, Secret):
            secrets.append(name)
        else:
            values[name] = written(value)
    return HEADER + env_file.lines(values) + "".join(f"# {name}=\n" for name in secrets)


def told(manifest: Manifest) -> str:
    """What is in a backup, in words."""
    counts = [f"{count} {name.replace('_', ' ')}" for name, count in manifest.holds.items()]
    size = sum(file.bytes for file in manifest.files.values())
    return f"{', '.join(counts)}; schema {manifest.migration or 'none'}; {size} bytes, uncompressed"


def _advise(settings: Settings, made: Made) -> None:
    for id, use in made.manifest.encryption_keys.items():
        click.echo(
            f"A restore needs the ENCRYPTION_KEY with the fingerprint {id}, for {use.provider_keys} keys of providers and "
            f"{use.tokens} tokens."
        )
    if made.plain:
        click.echo(
            f"warning: {made.plain} keys of providers are in it without encryption: guard it as you would guard them.", err=True
        )
    if settings.db_driver == "postgres":
        click.echo(
            'The database is PostgreSQL, and not in it. Now back that up: pg_dump --format=custom --file=FILE "$DATABASE_URL"'
        )
