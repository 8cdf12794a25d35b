"""Restoring a backup where no server runs."""

import contextlib
import datetime
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llm_proxy import __version__
from llm_proxy.backup import archive
from llm_proxy.backup.content import note_restore
from llm_proxy.backup.manifest import DATABASE, EVENTS, PROFILES, KeyUse, Manifest
from llm_proxy.db import copying, migrate
from llm_proxy.errors import StartError
from llm_proxy.events.disk import Disk
from llm_proxy.events.instances import living
from llm_proxy.settings import Settings
from llm_proxy.vault import Vault

# What SQLite keeps beside its file.
_SIDES = ("-wal", "-shm", "-journal")


@dataclass
class Restored:
    """What a restore did.

    Attributes:
        aside: where that is which stood there before.
        profiles: what became of the profiles: `written`, `same`, `differ`, or nothing when there are none in the backup.
    """

    manifest: Manifest
    aside: list[pathlib.Path] = field(default_factory=list)
    profiles: str = ""


def examine(settings: Settings, path: pathlib.Path) -> Manifest:
    """Hold that a backup is whole, and that this program can use it with these settings.

    Raises:
        StartError: it cannot be used; the text says why.
    """
    manifest = _suitable(settings, path)
    archive.extract(path, lambda name: None)
    return manifest


def _suitable(settings: Settings, path: pathlib.Path) -> Manifest:
    """The manifest of a backup that can be used here, as far as it says."""
    manifest = archive.read_manifest(path)
    _check_schema(manifest)
    _check_database(manifest, settings)
    _check_keys(manifest.encryption_keys, settings)
    return manifest


def _check_schema(manifest: Manifest) -> None:
    if manifest.migration and manifest.migration not in migrate.known():
        raise StartError(
            f"The backup is newer than this program: its database has the migration {manifest.migration} (LLM Proxy "
            f"{manifest.version}), and this program ({__version__}) ends at {migrate.known()[-1]}. Restore it with that version."
        )


def _check_database(manifest: Manifest, settings: Settings) -> None:
    if manifest.database == settings.db_driver:
        return
    if manifest.database == "sqlite":
        raise StartError("The backup holds an SQLite database, and the settings name PostgreSQL (DATABASE_URL). Leave that out.")
    raise StartError(
        "The backup was made beside PostgreSQL and holds no database. Set DATABASE_URL, and restore the database with pg_restore."
    )


def _check_keys(needed: Mapping[str, KeyUse], settings: Settings) -> None:
    known = Vault(settings.encryption_key).key_ids
    for id, use in needed.items():
        if id not in known:
            here = f"ENCRYPTION_KEY here has the fingerprint {', '.join(known)}" if known else "ENCRYPTION_KEY is not set"
            raise StartError(
                f"The backup needs the ENCRYPTION_KEY with the fingerprint {id}: without it, {use.provider_keys} keys of "
                f"providers and {use.tokens} tokens in it are of no use. {here}. Nothing was changed."
            )


def restore(settings: Settings, path: pathlib.Path, *, force: bool = False) -> Restored:
    """Put a backup in place of nothing, or with `force` of what is there, which is kept aside.

    Raises:
        StartError: it cannot be done; what was there is as it was, or aside.
    """
    done = Restored(_suitable(settings, path))
    with _told():
        _Place(settings, done, force).fill(path)
    return done


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartError(f"{error.filename}: the backup cannot be restored: {error.strerror or error}.") from error


class _Place:
    """Where a backup is restored to. Everything is taken out and verified first, then put in place by renaming."""

    def __init__(self, settings: Settings, done: Restored, force: bool) -> None:
        self._done, self._force, self._audited = done, force, settings.audit_enabled
        self._database = pathlib.Path(settings.database_path).absolute() if done.manifest.database == "sqlite" else None
        self._events = pathlib.Path(settings.event_dir).absolute()
        self._profiles = pathlib.Path(settings.api_config_path).absolute()
        unique = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        self._aside = f"before-restore-{unique}"
        # Inside of the folder, which may be a volume of its own; without a lock in it, no server takes it for a log.
        self._new_events = self._events / f".restoring-{unique}"
        self._new_database = self._database and self._database.with_name(f".{self._database.name}.restoring-{unique}")

    def fill(self, path: pathlib.Path) -> None:
        """Do it."""
        for folder in (self._events, *([self._database.parent] if self._database else [])):
            _make(folder)
        self._check_free()
        try:
            archive.extract(path, self._path_of)
            if self._new_database:
                copying.forget_sessions(self._new_database)
                if self._audited:
                    note_restore(self._new_database, self._done.manifest)
            # That took a while, in which a server may have started.
            self._check_free()
            self._put_profiles()
            self._clear()
            self._move_in()
        finally:
            shutil.rmtree(self._new_events, ignore_errors=True)
            if self._new_database:
                self._new_database.unlink(missing_ok=True)

    def _check_free(self) -> None:
        if not self._force and (there := [*self._old_databases(), *self._old_events()]):
            raise StartError(
                f"{there[0]} is there already. A backup is restored over it only with --force, which keeps what is there aside."
            )
        if running := living(self._events):
            raise StartError(f"A server runs on EVENT_DIR={self._events} ({running[0]}). Stop it first.")
        if self._database and self._database.exists() and copying.is_in_use(self._database):
            raise StartError(f"A server has DATABASE_PATH={self._database} open. Stop it first.")

    def _old_databases(self) -> list[pathlib.Path]:
        """What would be in the way: the sides too, or SQLite would take what they hold for a part of the new file."""
        path = self._database
        if path is None:
            return []
        found = [one for suffix in _SIDES if (one := path.with_name(path.name + suffix)).exists()]
        return [path, *found] if path.exists() and path.stat().st_size else found

    def _old_events(self) -> list[pathlib.Path]:
        return [path for path in sorted(self._events.iterdir()) if not path.name.startswith(("before-restore-", ".restoring-"))]

    def _path_of(self, name: str) -> pathlib.Path | None:
        if name.startswith(EVENTS):
            return self._new_events / name.removeprefix(EVENTS)
        return {DATABASE: self._new_database, PROFILES: self._new_events / PROFILES}.get(name)

    def _clear(self) -> None:
        """Set aside what is there."""
        for path in self._old_databases():
            path.rename(path.with_name(f"{path.name}.{self._aside}"))
            self._done.aside.append(path.with_name(f"{path.name}.{self._aside}"))
        if old := self._old_events():
            aside = self._events / self._aside
            _make(aside)
            for path in old:
                path.rename(aside / path.name)
            self._done.aside.append(aside)

    def _move_in(self) -> None:
        for path in sorted(self._new_events.iterdir()) if self._new_events.is_dir() else []:
            for one in (path, *path.rglob("*")):
                _give_away(one, self._events)
            path.rename(self._events / path.name)
        Disk().sync_folder(self._events)
        if self._new_database and self._database:
            _give_away(self._new_database, self._database.parent)
            self._new_database.rename(self._database)
            Disk().sync_folder(self._database.parent)

    def _put_profiles(self) -> None:
        """The profiles go where there are none; an operator's own are not replaced."""
        taken = self._new_events / PROFILES
        if not taken.exists():
            return
        if self._profiles.exists():
            self._done.profiles = "same" if self._profiles.read_bytes() == taken.read_bytes() else "differ"
        else:
            _make(self._profiles.parent)
            # Nor is a link followed that points to nothing yet: root restores where others may write.
            with self._profiles.open("xb") as file:
                file.write(taken.read_bytes())
            _give_away(self._profiles, self._profiles.parent)
            self._done.profiles = "written"
        taken.unlink()


def _make(folder: pathlib.Path) -> None:
    """A folder, with those above it that are missing."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700)
        _give_away(folder, folder.parent)


def _give_away(path: pathlib.Path, to_owner_of: pathlib.Path) -> None:
    """What root restores belongs to whom the folder belongs to, or the server could not open it."""
    if os.geteuid() == 0:
        owner = to_owner_of.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
