"""A backup put in place: on an empty machine all goes on as it would have; nothing is lost where it cannot be."""

import asyncio
import base64
import contextlib
import dataclasses
import os
import pathlib
import signal
import sqlite3
from collections.abc import AsyncIterator

import aiohttp
import pytest
from stage.asking import until
from stage.calls import BODY
from stage.house import ENCRYPTION_KEY, PROVIDER_KEY, House, open_house, place_migrated, settings_for
from stage.logs import left_behind, lines_of, logged, samples
from stage.processes import Server, server
from stage.provider import ScriptedProvider

from llm_proxy.backup import archive, restoring
from llm_proxy.backup.making import make
from llm_proxy.backup.manifest import Manifest
from llm_proxy.backup.restoring import examine, restore
from llm_proxy.db import migrate
from llm_proxy.errors import StartError
from llm_proxy.settings import Settings


async def ask(client: aiohttp.ClientSession, url: str, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    async with client.post(f"{url}/v1/chat/completions", json=BODY, headers=headers) as reply:
        await reply.read()
        return reply.status


@contextlib.asynccontextmanager
async def under_load(site: Server, client: aiohttp.ClientSession, token: str) -> AsyncIterator[list[int]]:
    """Calls run on during the block, four at a time; the list holds how each ended."""
    ends, enough = list[int](), asyncio.Event()

    async def go_on() -> None:
        while not enough.is_set():
            ends.append(await ask(client, site.url, token))

    callers = [asyncio.ensure_future(go_on()) for _ in range(4)]
    yield ends
    enough.set()
    await asyncio.gather(*callers)


def ids(events: list[dict[str, object]]) -> list[object]:
    return [event["id"] for event in events]


async def test_on_an_empty_machine_all_goes_on_as_it_would_have(tmp_path: pathlib.Path, provider: ScriptedProvider) -> None:
    old, new, path = tmp_path / "old", tmp_path / "new", tmp_path / "b.tar.gz"
    for folder in (old, new):
        folder.mkdir()
    (old / "away").touch()
    # The sink is away, so that all events are undelivered, in many small segments.
    sink = {"EVENT_SINKS": "file", "EVENT_FILE": str(old / "away" / "events.jsonl"), "EVENT_BACKLOG_BYTES": "8MB"}
    async with server(old, **sink) as site, aiohttp.ClientSession() as client:
        made = await site.token_for(provider.url, PROVIDER_KEY, max_requests=100_000)
        token, projects = made["token"], await site.manage("GET", "/manage/projects")
        async with under_load(site, client, token) as ends:
            await until(lambda: len(ends) > 40)
            before, settings = ids(logged(old / "events")), settings_for(old, **sink)
            manifest = (await asyncio.to_thread(make, settings, path, "")).manifest
            count = len(ends)
            await until(lambda: len(ends) > count + 20)
        assert set(ends) == {200}
        site.send(signal.SIGKILL)
    order = ids(logged(old / "events"))
    done = restore(settings_for(new), path)
    assert done.manifest.holds == manifest.holds and not done.aside
    async with server(new, EVENT_SINKS="file") as site, aiohttp.ClientSession() as client:
        assert await site.manage("GET", "/manage/projects") == projects
        assert await ask(client, site.url, token) == 200
        assert provider.exchanges[-1].header(b"authorization") == f"Bearer {PROVIDER_KEY}".encode()
        used = (await site.manage("GET", f"/manage/tokens/{made['id']}"))["request_count"]
        count = manifest.holds["undelivered"] + 1
        await until(lambda: len(lines_of(new / "events.jsonl")) >= count, 20)
        assert await site.stopped() == 0
    delivered = ids(lines_of(new / "events.jsonl"))
    delivered = [id for id in delivered if id in order]
    assert set(before) <= set(delivered) and delivered == order[: len(delivered)], "each once, in the order in which they were"
    assert len(delivered) == manifest.holds["undelivered"] < len(order)
    assert used > len(before), "the database knows at least the calls whose events are in the backup"


@pytest.fixture
async def backup(house: House, tmp_path: pathlib.Path) -> pathlib.Path:
    """A backup of a house with a token and three undelivered events."""
    await house.token_for("http://127.0.0.1:1")
    async with house.context.database.transaction() as tx:
        await house.context.sessions.begin(tx, "operator", "::1", long=True)
    left_behind(tmp_path / "events", *samples(1, 2, 3), sinks=("file",))
    await asyncio.to_thread(make, house.context.settings, tmp_path / "b.tar.gz", "")
    return tmp_path / "b.tar.gz"


@pytest.fixture
def there(tmp_path: pathlib.Path) -> Settings:
    """Settings of another machine."""
    (tmp_path / "there").mkdir()
    return settings_for(tmp_path / "there")


def changed(path: pathlib.Path, **facts: object) -> None:
    """The archive, its manifest saying something else."""
    (folder := path.with_suffix(".content")).mkdir()
    archive.extract(path, lambda name: folder / name)
    archive.write(path, dataclasses.replace(archive.read_manifest(path), **facts), folder)  # type: ignore[arg-type]


def test_what_is_restored_has_no_sessions_and_keeps_its_modes(backup: pathlib.Path, there: Settings) -> None:
    restore(there, backup)
    database, events = pathlib.Path(there.database_path), pathlib.Path(there.event_dir)
    assert database.stat().st_mode & 0o777 == 0o600
    assert {path.stat().st_mode & 0o777 for path in events.rglob("*") if path.is_file()} == {0o600}
    assert sorted(path.name for path in events.iterdir()) == sorted(path.name for path in (backup.parent / "events").iterdir())
    assert [path.name for path in database.parent.iterdir() if "restoring" in path.name] == []
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM admin_sessions").fetchone() == (0,)
        [(actor, details)] = connection.execute("SELECT actor, details FROM audit_events WHERE action = 'backup.restore'")
    assert actor == "restore" and archive.read_manifest(backup).created_at in details


@pytest.mark.parametrize(
    ("key", "says"),
    [
        pytest.param("", "ENCRYPTION_KEY is not set", id="none"),
        pytest.param("A" * 43 + "=", "ENCRYPTION_KEY here has the fingerprint", id="another"),
    ],
)
def test_the_wrong_encryption_key_is_refused_before_anything_is_changed(
    backup: pathlib.Path, there: Settings, key: str, says: str
) -> None:
    [needed] = archive.read_manifest(backup).encryption_keys
    wrong = settings_for(pathlib.Path(there.event_dir).parent, ENCRYPTION_KEY=key)
    for act in (examine, restore):
        with pytest.raises(StartError, match=rf"with the fingerprint {needed}.*1 keys of providers and 1 tokens.*{says}"):
            act(wrong, backup)
    assert not list(pathlib.Path(there.event_dir).parent.iterdir())
    both = settings_for(
        pathlib.Path(there.event_dir).parent, ENCRYPTION_KEY=f"{base64.b64encode(bytes(32)).decode()},{ENCRYPTION_KEY}"
    )
    assert examine(both, backup)


def test_a_backup_of_a_newer_schema_is_refused_with_the_version_to_use(backup: pathlib.Path, there: Settings) -> None:
    changed(backup, migration="9999_future", version="9.9.9")
    with pytest.raises(StartError, match=r"newer than this program.*9999_future \(LLM Proxy 9\.9\.9\).*ends at 0"):
        restore(there, backup)


def test_a_backup_of_an_older_schema_is_migrated_by_the_next_start(tmp_path: pathlib.Path, there: Settings) -> None:
    settings = settings_for(tmp_path)
    migrate.up(settings)
    while len(migrate.applied(settings)) > 1:
        migrate.down(settings)
    make(settings, tmp_path / "b.tar.gz", "")
    restore(there, tmp_path / "b.tar.gz")
    assert migrate.applied(there) == migrate.known()[:1]
    assert migrate.up(there) == migrate.known()[1:]


@pytest.mark.parametrize("there_is", ["a database", "events", "a side of a database"])
def test_nothing_is_restored_over_what_is_there(backup: pathlib.Path, there: Settings, there_is: str) -> None:
    database, events = pathlib.Path(there.database_path), pathlib.Path(there.event_dir)
    if there_is == "a database":
        place_migrated(database)
    elif there_is == "events":
        left_behind(events, *samples(9), name="host")
    else:
        database.with_name("house.db-wal").write_bytes(b"x")
    before = {path: path.read_bytes() for path in database.parent.rglob("*") if path.is_file()}
    with pytest.raises(StartError, match=r"is there already.*--force"):
        restore(there, backup)
    assert {path: path.read_bytes() for path in database.parent.rglob("*") if path.is_file()} == before
    done = restore(there, backup, force=True)
    [aside] = done.aside
    kept = [path.read_bytes() for path in ([aside] if aside.is_file() else aside.rglob("*")) if path.is_file()]
    assert sorted(kept) == sorted(before.values())
    assert len(logged(events)) == 3


async def test_what_runs_is_not_restored_over(backup: pathlib.Path, there: Settings, tmp_path: pathlib.Path) -> None:
    async with open_house(there):
        with pytest.raises(StartError, match=r"A server runs on EVENT_DIR=.*Stop it first"):
            await asyncio.to_thread(restore, there, backup, force=True)
        elsewhere = dataclasses.replace(there, event_dir=str(tmp_path / "elsewhere"))
        with pytest.raises(StartError, match=r"A server has DATABASE_PATH=.* open"):
            await asyncio.to_thread(restore, elsewhere, backup, force=True)


def test_a_damaged_backup_changes_nothing(backup: pathlib.Path, there: Settings) -> None:
    place_migrated(pathlib.Path(there.database_path))
    data = bytearray(backup.read_bytes())
    data[len(data) // 2] ^= 1
    backup.write_bytes(data)
    with pytest.raises(StartError, match="damaged"):
        restore(there, backup, force=True)
    backup.unlink()
    folder = pathlib.Path(there.database_path).parent
    assert sorted(path.name for path in folder.rglob("*")) == ["events", "house.db"]
    assert migrate.missing(there) == []


def test_a_damaged_database_that_is_there_is_kept_aside(backup: pathlib.Path, there: Settings) -> None:
    pathlib.Path(there.database_path).write_text("rubbish\n" * 1000)
    [aside] = restore(there, backup, force=True).aside
    assert aside.read_text().startswith("rubbish")
    assert migrate.missing(there) == []


@pytest.mark.parametrize(("own", "became"), [("", "written"), ("a: 1\n", "same"), ("b: 2\n", "differ")])
async def test_the_profiles_go_where_there_are_none(
    house: House, there: Settings, tmp_path: pathlib.Path, own: str, became: str
) -> None:
    (tmp_path / "from.yaml").write_text("a: 1\n")
    source = dataclasses.replace(house.context.settings, api_config_path=str(tmp_path / "from.yaml"))
    await asyncio.to_thread(make, source, tmp_path / "b.tar.gz", "")
    target = tmp_path / "conf" / "to.yaml"
    if own:
        target.parent.mkdir()
        target.write_text(own)
    done = restore(dataclasses.replace(there, api_config_path=str(target)), tmp_path / "b.tar.gz")
    assert (done.profiles, target.read_text()) == (became, own or "a: 1\n")


async def test_profiles_that_cannot_be_written_leave_all_as_it_is(house: House, there: Settings, tmp_path: pathlib.Path) -> None:
    (tmp_path / "from.yaml").write_text("a: 1\n")
    source = dataclasses.replace(house.context.settings, api_config_path=str(tmp_path / "from.yaml"))
    await asyncio.to_thread(make, source, tmp_path / "b.tar.gz", "")
    place_migrated(tmp_path / "there" / "house.db")
    wrong = dataclasses.replace(there, api_config_path=str(tmp_path / "from.yaml" / "to.yaml"))
    with pytest.raises(StartError, match=r"from\.yaml: the backup cannot be restored: "):
        restore(wrong, tmp_path / "b.tar.gz", force=True)
    assert sorted(path.name for path in (tmp_path / "there").rglob("*")) == ["events", "house.db"]


def test_what_comes_to_be_there_meanwhile_is_not_restored_over(
    backup: pathlib.Path, there: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = archive.extract

    def slowly(*given: object) -> None:
        extract(*given)  # type: ignore[arg-type]
        place_migrated(pathlib.Path(there.database_path))

    monkeypatch.setattr(restoring.archive, "extract", slowly)
    with pytest.raises(StartError, match=r"house\.db is there already"):
        restore(there, backup)


async def test_profiles_are_not_written_through_a_link(house: House, there: Settings, tmp_path: pathlib.Path) -> None:
    (tmp_path / "from.yaml").write_text("a: 1\n")
    source = dataclasses.replace(house.context.settings, api_config_path=str(tmp_path / "from.yaml"))
    await asyncio.to_thread(make, source, tmp_path / "b.tar.gz", "")
    (link := tmp_path / "to.yaml").symlink_to(tmp_path / "of root")
    with pytest.raises(StartError, match=r"to\.yaml: the backup cannot be restored: File exists"):
        restore(dataclasses.replace(there, api_config_path=str(link)), tmp_path / "b.tar.gz")
    assert not (tmp_path / "of root").exists()


async def test_beside_postgresql_the_events_alone_are_restored(
    backup: pathlib.Path, there: Settings, tmp_path: pathlib.Path, postgres_url: str
) -> None:
    folder = pathlib.Path(there.event_dir).parent
    with pytest.raises(StartError, match="holds an SQLite database, and the settings name PostgreSQL"):
        restore(settings_for(folder, DATABASE_URL=postgres_url), backup)
    await asyncio.to_thread(make, settings_for(tmp_path, DATABASE_URL=postgres_url), tmp_path / "pg.tar.gz", "")
    with pytest.raises(StartError, match="holds no database"):
        restore(there, tmp_path / "pg.tar.gz")
    manifest: Manifest = restore(settings_for(folder, DATABASE_URL=postgres_url), tmp_path / "pg.tar.gz").manifest
    assert manifest.holds["undelivered"] == 3 and len(logged(folder / "events")) == 3
    assert not (folder / "house.db").exists()


def test_what_root_restores_belongs_to_the_owner_of_the_folder(
    backup: pathlib.Path, there: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[pathlib.Path, tuple[int, ...]] = {}
    monkeypatch.setattr(restoring.os, "geteuid", lambda: 0)
    monkeypatch.setattr(restoring.os, "chown", lambda path, *to, follow_symlinks: given.__setitem__(path, to))
    restore(there, backup)
    owner = pathlib.Path(there.database_path).parent.stat()
    assert set(given.values()) == {(owner.st_uid, owner.st_gid)}
    assert {"file.cursor", "lock", "events", "gone-1"} <= {path.name for path in given}
    assert any(path.name.startswith(".house.db.restoring") for path in given)
    assert os.getuid() == owner.st_uid


def test_a_folder_that_cannot_be_written_is_named(backup: pathlib.Path, there: Settings) -> None:
    pathlib.Path(there.event_dir).write_text("a file")
    with pytest.raises(StartError, match=r"events: the backup cannot be restored: "):
        restore(there, backup)
