"""Making a backup while the server runs."""

import contextlib
import datetime
import pathlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from llm_proxy import __version__
from llm_proxy.backup import archive
from llm_proxy.backup.content import Content, content_of
from llm_proxy.backup.manifest import DATABASE, EVENTS, PROFILES, SETTINGS, KeyUse, Manifest, decode
from llm_proxy.clock import now_ms, to_rfc3339
from llm_proxy.db import copying, migrate
from llm_proxy.errors import StartError
from llm_proxy.events.copying import Copied, copy_logs
from llm_proxy.settings import Settings
from llm_proxy.vault import Vault

_DATED = re.compile(r"llm-proxy-[0-9]{8}T[0-9]{6}Z\.tar\.gz")


@dataclass(frozen=True)
class Made:
    """A backup that was made.

    Attributes:
        plain: how many keys of providers are in it without encryption.
        removed: earlier backups that went.
    """

    path: pathlib.Path
    manifest: Manifest
    plain: int
    removed: list[pathlib.Path]


def make(settings: Settings, target: pathlib.Path, settings_text: str, keep: int | None = None) -> Made:
    """Make a backup of what the settings name; on PostgreSQL, of everything but the database.

    Args:
        target: the archive, or a folder in which it gets a name with the time.
        settings_text: the settings without secrets, as a file of settings.
        keep: how many dated backups stay in the folder, this one included.

    Raises:
        StartError: it cannot be made; the text says why.
    """
    dated = target.is_dir()
    path = target / f"llm-proxy-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}.tar.gz" if dated else target
    with _told(path), _stage(path.parent) as folder:
        manifest, plain = _fill(folder, settings, settings_text)
        # What a restore would refuse must not pass for a backup.
        decode(manifest.encode())
        archive.write(path, manifest, folder)
        removed = _rotate(target, keep) if dated and keep else []
    return Made(path, manifest, plain, removed)


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartError(f"{path}: the backup cannot be made: {error.strerror or error} ({error.filename or path}).") from error


@contextlib.contextmanager
def _stage(beside: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder for copies, where there is to be room for the backup itself; only we may look into it."""
    with tempfile.TemporaryDirectory(prefix=".llm-proxy-backup-", dir=beside) as name:
        yield pathlib.Path(name)


def _fill(folder: pathlib.Path, settings: Settings, settings_text: str) -> tuple[Manifest, int]:
    """Copy everything; returns what the manifest says of it, and how many keys of providers are plain.

    Events go first: what the database knows is then at least what they speak of.
    """
    copied = copy_logs(pathlib.Path(settings.event_dir), folder / EVENTS)
    content = _copy_database(folder / DATABASE, settings)
    (folder / SETTINGS).write_text(settings_text)
    profiles = pathlib.Path(settings.api_config_path)
    if profiles.is_file():
        (folder / PROFILES).write_bytes(profiles.read_bytes())
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    manifest = Manifest(
        version=__version__,
        migration=content.migration,
        created_at=str(to_rfc3339(now_ms())),
        database=settings.db_driver,
        holds=_counts(content, copied),
        encryption_keys=_needed(content, settings),
        files={name: archive.describe(folder / name) for name in names},
    )
    return manifest, content.plain


def _copy_database(target: pathlib.Path, settings: Settings) -> Content:
    if settings.db_driver != "sqlite":
        return Content((migrate.applied(settings) or [""])[-1], {}, {}, 0)
    copying.copy(pathlib.Path(settings.database_path), target)
    return content_of(target)


def _counts(content: Content, copied: Copied) -> dict[str, int]:
    events = {"events": copied.events, "undelivered": copied.undelivered, "dead_letters": copied.dead_letters}
    return {**content.holds, **events}


def _needed(content: Content, settings: Settings) -> dict[str, KeyUse]:
    """What is needed of encryption keys; what not even the server can read any more is not asked for."""
    known = Vault(settings.encryption_key).key_ids
    return {id: use for id, use in content.keys.items() if not known or id in known}


def _rotate(folder: pathlib.Path, keep: int) -> list[pathlib.Path]:
    """Remove the oldest backups, by the time in their names; other files are not ours to remove."""
    found = sorted(path for path in folder.iterdir() if _DATED.fullmatch(path.name))
    for path in found[:-keep]:
        path.unlink()
    return found[:-keep]
