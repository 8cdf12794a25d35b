"""Copies of an SQLite file that others write to."""

import contextlib
import pathlib
import sqlite3
import threading
from collections.abc import Iterator

import pytest
from stage.house import place_migrated

from llm_proxy.db.copying import copy, forget_sessions, is_in_use
from llm_proxy.errors import StartError


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    place_migrated(tmp_path / "live.db")
    return tmp_path / "live.db"


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        yield connection


def test_each_copy_made_under_writes_is_one_moment_of_the_database(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    written, enough = threading.Semaphore(0), threading.Event()

    def write() -> None:
        with opened(path) as connection:
            connection.execute("CREATE TABLE one (text)")
            connection.execute("CREATE TABLE other (text)")
            while not enough.is_set():
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO one VALUES (hex(randomblob(3000)))")
                connection.execute("INSERT INTO other VALUES (hex(randomblob(3000)))")
                connection.execute("COMMIT")
                written.release()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = []
        for number in range(5):
            for _ in range(20):
                assert written.acquire(timeout=10)
            copy(path, target := tmp_path / f"copy-{number}.db")
            with contextlib.closing(sqlite3.connect(target)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                one, other = (connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone() for table in ("one", "other"))
            assert one == other
            counts.append(one)
    finally:
        enough.set()
        writer.join()
    assert counts == sorted(set(counts)), "each holds what was written before it was made"


def test_a_copy_is_one_file_for_its_owner(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(path) as live:
        live.execute("CREATE TABLE in_the_wal (text)")
        (tmp_path / "copies").mkdir()
        copy(path, tmp_path / "copies" / "copy.db")
    [target] = (tmp_path / "copies").iterdir()
    assert target.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(target)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM in_the_wal").fetchone() == (0,)


def test_what_cannot_be_copied_is_named(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(StartError, match=r"none\.db: there is no such file. --db"):
        copy(tmp_path / "none.db", tmp_path / "copy.db")
    (tmp_path / "text").write_text("no database\n" * 1000)
    with pytest.raises(StartError, match="text cannot be copied: file is not a database"):
        copy(tmp_path / "text", tmp_path / "copy.db")


def test_a_damaged_database_is_no_backup(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(path) as connection:
        connection.execute("CREATE TABLE some (text)")
        connection.executemany("INSERT INTO some VALUES (?)", [("damaged" * 50,) for _ in range(100)])
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    page = data.rindex(b"damaged" * 50) // 4096 * 4096
    # Where the first cell of the page is.
    path.write_bytes(data[: page + 8] + b"\xff\xff" + data[page + 10 :])
    with pytest.raises(StartError, match=r"live\.db is damaged: .*Restore an earlier backup"):
        copy(path, tmp_path / "copy.db")


def test_a_database_is_in_use_while_anybody_has_it_open(path: pathlib.Path) -> None:
    assert not is_in_use(path)
    with opened(path) as live:
        live.execute("CREATE TABLE in_the_wal (text)")
        assert is_in_use(path)
    assert not is_in_use(path)
    assert [one.name for one in path.parent.glob("live.db*")] == ["live.db"]


def test_a_file_that_is_no_database_is_not_in_use(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text").write_text("no database\n" * 1000)
    assert not is_in_use(tmp_path / "text")


def test_sessions_are_forgotten_where_there_are_any(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(path) as connection:
        connection.execute("INSERT INTO admin_sessions VALUES ('id', 1, 1, 9999999999999, '::1', 'hash')")
    forget_sessions(path)
    with opened(path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM admin_sessions").fetchone() == (0,)
        # As before the migration that makes the table.
        connection.execute("DROP TABLE admin_sessions")
    forget_sessions(path)
