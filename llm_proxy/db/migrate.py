"""Migrations: the files of sql/migrations, applied at start by one process while the others wait."""

import asyncio
import contextlib
import fcntl
import glob
import pathlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import quote, urlencode

import psycopg2
import psycopg2.extensions

from llm_proxy.errors import StartError
from llm_proxy.settings import Settings

LOCK_SECONDS = 60.0
CHECK_SECONDS = 0.25
# An arbitrary number that no other user of the database's advisory locks is likely to take.
ADVISORY_LOCK = 0x6C6C6D70


def folder() -> pathlib.Path:
    """Where the migrations are, in a wheel, an editable install and a bare source tree alike."""
    return pathlib.Path(str(resources.files("llm_proxy.sql"))) / "migrations"


def known() -> list[str]:
    """The ids of the migrations that this program has, oldest first."""
    return sorted(path.name.removesuffix(".sql") for path in folder().glob("*.sql") if not path.name.endswith(".rollback.sql"))


async def ensure(settings: Settings) -> None:
    """Bring the database to this program's schema.

    Raises:
        StartError: it cannot be opened, is newer than the program, or a migration failed.
    """
    await asyncio.to_thread(up, settings)


def up(settings: Settings) -> list[str]:
    """Apply what is missing, under a lock; returns the ids applied."""
    check_integrity(settings)
    if not missing(settings):
        return []
    with _locked(settings):
        todo = missing(settings)
        if todo:
            _run(settings, _apply_all)
            if missing(settings):
                raise StartError("The migrations ran, yet some are still missing. Look at `llm-proxy migrate status`.")
        return todo


def down(settings: Settings) -> list[str]:
    """Roll the newest migration back; returns its id."""
    with _locked(settings):
        # This also refuses a database whose newest migration is not among ours.
        missing(settings)
        newest = applied(settings)[-1:]
        _run(settings, _roll_back_newest)
        return newest


def _apply_all(backend: Any, migrations: Any) -> None:
    for migration in backend.to_apply(migrations):
        # By itself yoyo commits the steps before it notes them, and a process killed in between could never start again.
        with backend.transaction():
            migration.process_steps(backend, "apply")
            backend.mark_one(migration, log=False)


def _roll_back_newest(backend: Any, migrations: Any) -> None:
    for migration in backend.to_rollback(migrations)[:1]:
        with backend.transaction():
            migration.process_steps(backend, "rollback")
            backend.unmark_one(migration, log=False)


def missing(settings: Settings) -> list[str]:
    """The ids still to be applied.

    Raises:
        StartError: the database has migrations that this program does not know.
    """
    there = applied(settings)
    newer = sorted(set(there) - set(known()))
    if newer:
        raise StartError(
            f"The database is newer than this program: it has the migration {newer[-1]}, and this program ends at {known()[-1]}. "
            "Start the newer program, or restore the backup from before the upgrade."
        )
    return [name for name in known() if name not in there]


def applied(settings: Settings) -> list[str]:
    """The ids that the database has, oldest first."""
    try:
        with _driver(settings) as cursor:
            cursor.execute("SELECT migration_id FROM _yoyo_migration ORDER BY migration_id")
            return [str(row[0]) for row in cursor.fetchall()]
    except (psycopg2.errors.UndefinedTable, sqlite3.OperationalError) as error:
        if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            raise StartError(_why_not(settings, error)) from error
        return []
    except (sqlite3.DatabaseError, psycopg2.Error) as error:
        raise StartError(_why_not(settings, error)) from error


def check_integrity(settings: Settings) -> None:
    """Look for damage in an SQLite file, as far as a quarter of a second goes: `llm-proxy check` looks at all of it.

    Raises:
        StartError: the file is damaged, or cannot be opened.
    """
    if settings.db_driver != "sqlite":
        return
    with _driver(settings) as cursor:
        interruption = threading.Timer(CHECK_SECONDS, cursor.connection.interrupt)
        interruption.start()
        try:
            [found] = cursor.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                return
            raise StartError(_why_not(settings, error)) from error
        finally:
            interruption.cancel()
            interruption.join()
    if found != "ok":
        raise StartError(_why_not(settings, found.splitlines()[-1]))


def break_lock(settings: Settings) -> None:
    """Remove the lock row that a killed migration tool has left."""
    with _locked(settings):
        _run(settings, lambda backend, migrations: None)


def _why_not(settings: Settings, error: object) -> str:
    if settings.db_driver == "postgres":
        return f"The PostgreSQL database of DATABASE_URL cannot be used: {str(error).strip()}"
    return (
        f"The SQLite file {settings.database_path} cannot be used: {error}. "
        "Check DATABASE_PATH and the file's permissions; if the file is damaged, restore a backup."
    )


@contextmanager
def _driver(settings: Settings) -> Iterator[Any]:
    if settings.db_driver == "postgres":
        with contextlib.closing(psycopg2.connect(settings.database_url.reveal(), connect_timeout=5)) as connection:
            connection.autocommit = True
            yield connection.cursor()
        return
    path = pathlib.Path(settings.database_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file holds hashes and ciphertexts; nobody else has business reading it.
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    except (OSError, sqlite3.Error) as error:
        raise StartError(_why_not(settings, error)) from error
    with contextlib.closing(connection):
        yield connection.cursor()


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """One process at a time. Both kinds of lock end with their holder, so kill -9 leaves none behind."""
    if settings.db_driver == "postgres":
        with _driver(settings) as cursor:
            _wait_for(lambda: _try_advisory(cursor))
            yield
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(pathlib.Path(f"{settings.database_path}.lock").open("a"))
        except OSError as error:
            raise StartError(_why_not(settings, error)) from error
        _wait_for(lambda: _try_flock(file.fileno()))
        yield


def _try_advisory(cursor: Any) -> bool:
    cursor.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,))
    return bool(cursor.fetchone()[0])


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for(attempt: Callable[[], bool]) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while not attempt():
        if time.monotonic() > end:
            raise StartError(
                f"Another process has been migrating this database for {LOCK_SECONDS:.0f} s. See to it, then start again."
            )
        time.sleep(0.05)


def _run(settings: Settings, act: Callable[[Any, Any], None]) -> None:
    # yoyo takes a tenth of a second to import, and most starts have nothing to apply.
    import yoyo

    try:
        with yoyo.get_backend(_uri(settings)) as backend:
            # We hold our own lock, so a row in yoyo's belongs to a process that was killed.
            backend.break_lock()
            act(backend, yoyo.read_migrations(glob.escape(str(folder()))))
    except (sqlite3.Error, psycopg2.Error) as error:
        raise StartError(
            f"A migration failed and was rolled back: {str(error).strip()}. The database is as it was; "
            "mend the cause and start again."
        ) from error


def _uri(settings: Settings) -> str:
    if settings.db_driver == "sqlite":
        return "sqlite:///" + quote(str(pathlib.Path(settings.database_path).absolute()))
    # yoyo's own reading of a URL knows less than libpq's, so it gets the parts.
    return "postgresql:///?" + urlencode(psycopg2.extensions.parse_dsn(settings.database_url.reveal()))
