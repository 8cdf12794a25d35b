"""`llm-proxy restore`: a backup put in place."""

import pathlib

import click

from llm_proxy.backup.restoring import Restored, examine, restore
from llm_proxy.cli import options
from llm_proxy.cli.backup import told

PROFILES = {
    "written": "The profiles were written to {path}.",
    "differ": "The profiles at {path} are not those of the backup, and stay. To see its: tar -xzOf {archive} api_providers.yaml",
}


@click.command()
@click.argument("archive", metavar="FILE", type=click.Path(path_type=pathlib.Path))
@click.option("--check", is_flag=True, help="Only say whether the backup is whole, and would do here.")
@click.option("--force", is_flag=True, help="Keep what is there aside, and restore in its place.")
@options.database
@options.env_file
def command(archive: pathlib.Path, check: bool, force: bool) -> None:
    """Restore a backup to DATABASE_PATH and EVENT_DIR, where no server runs. Checksums, schema and ENCRYPTION_KEY are checked
    before anything is changed. Operators have to log in again.

    \b
    Examples:
      llm-proxy restore --check llm-proxy-20261121T030000Z.tar.gz
      llm-proxy restore --env /etc/llm-proxy/llm-proxy.env llm-proxy-20261121T030000Z.tar.gz
    """
    settings = options.settings()
    if check:
        manifest = examine(settings, archive)
        click.echo(f"{archive} is whole, and can be restored here. {manifest.created_at}: {told(manifest)}.")
        return
    done = restore(settings, archive, force=force)
    click.echo(f"Restored {archive} of {done.manifest.created_at}: {told(done.manifest)}.")
    _advise(done, archive, settings.api_config_path)


def _advise(done: Restored, archive: pathlib.Path, profiles: str) -> None:
    for path in done.aside:
        click.echo(f"What was there is kept: {path}")
    if done.profiles in PROFILES:
        click.echo(PROFILES[done.profiles].format(path=profiles, archive=archive))
    if done.manifest.database == "postgres":
        click.echo("The database is PostgreSQL, and not in the backup: pg_restore --clean --if-exists --dbname=URL FILE")
    else:
        click.echo("Tokens that were revoked after the backup are good again: revoke them again.")
    click.echo(f"Its settings, without secrets: tar -xzOf {archive} settings.env")
