"""An SQLite file, copied while it is in use."""

import contextlib
import pathlib
import sqlite3
from collections.abc import Iterator
from urllib.parse import quote

from llm_proxy.errors import StartError

# Longer than a checkpoint or a migration holds the file.
BUSY_SECONDS = 30.0


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a database as it is at one moment into one file; whoever writes to it meanwhile is not held up.

    Raises:
        StartError: it cannot be read, or is damaged.
    """
    if not source.is_file():
        raise StartError(f"DATABASE_PATH={source}: there is no such file. --db or --env says where the database is.")
    target.touch(mode=0o600)
    with told(source), opened(source) as live, opened(target) as copied:
        # In one step: with several it begins anew whenever somebody writes in between, and under load never ends.
        live.backup(copied, pages=-1)
        [state] = copied.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise StartError(f"The SQLite file {source} is damaged: {state.splitlines()[-1]}. Restore an earlier backup.")


def forget_sessions(path: pathlib.Path) -> None:
    """Log everybody out: a session that was ended after a copy was made must not come back with it."""
    with told(path), opened(path) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'admin_sessions'").fetchone():
            connection.execute("DELETE FROM admin_sessions")


def is_in_use(path: pathlib.Path) -> bool:
    """Whether a process has the database open; when none has, all of it is in its one file from now on."""
    try:
        with opened(path, seconds=0.0) as connection:
            # Nobody may leave WAL while somebody else has the file open.
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError as error:
        return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY
    except sqlite3.DatabaseError:
        # Damaged, which may be why there is a backup to restore.
        return False
    return False


@contextlib.contextmanager
def opened(path: pathlib.Path, seconds: float = BUSY_SECONDS) -> Iterator[sqlite3.Connection]:
    """A connection to a file that is there."""
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=seconds)) as connection:
        yield connection


@contextlib.contextmanager
def told(path: pathlib.Path) -> Iterator[None]:
    """Errors of SQLite become ours, naming the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise StartError(
            f"The SQLite file {path} cannot be copied: {error}. Is it a database of LLM Proxy, and readable?"
        ) from error
