"""Backups of a house that goes on working."""

import asyncio
import pathlib
import tarfile

import pytest
from stage.house import ENCRYPTION_KEY, House, settings_for
from stage.logs import left_behind, samples

from llm_proxy import __version__
from llm_proxy.backup import making
from llm_proxy.backup.archive import read_manifest
from llm_proxy.backup.making import make
from llm_proxy.db import migrate
from llm_proxy.errors import StartError
from llm_proxy.secret import Secret
from llm_proxy.vault import Vault

[KEY_ID] = Vault([Secret(ENCRYPTION_KEY)]).key_ids


def beginning(folder: pathlib.Path, text: str) -> list[pathlib.Path]:
    return list(folder.glob(f"{text}*"))


async def test_a_backup_says_what_is_in_it(house: House, tmp_path: pathlib.Path) -> None:
    await house.token_for("http://127.0.0.1:1")
    left_behind(pathlib.Path(house.context.settings.event_dir), *samples(1, 2, 3), name="gone", sinks=("file",))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "api_providers.yaml").write_text("default_api: openai\n")
    made = await asyncio.to_thread(make, house.context.settings, tmp_path / "b.tar.gz", "A=1\n")
    manifest = read_manifest(made.path)
    assert manifest == made.manifest
    assert (manifest.version, manifest.migration, manifest.database) == (__version__, migrate.known()[-1], "sqlite")
    counts = {"projects": 1, "providers": 1, "tokens": 1, "events": 3, "undelivered": 3, "dead_letters": 0}
    assert manifest.holds == counts
    assert list(manifest.encryption_keys) == [KEY_ID]
    assert {"database.db", "settings.env", "api_providers.yaml", "events/gone-1/lock"} <= manifest.files.keys()
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert not beginning(tmp_path, ".llm-proxy-backup-")


async def test_a_key_that_the_server_itself_lacks_is_not_asked_for(house: House, tmp_path: pathlib.Path) -> None:
    await house.token_for("http://127.0.0.1:1")
    other = settings_for(tmp_path, ENCRYPTION_KEY="A" * 43 + "=")
    assert not make(other, tmp_path / "a.tar.gz", "").manifest.encryption_keys
    assert make(settings_for(tmp_path, ENCRYPTION_KEY=""), tmp_path / "b.tar.gz", "").manifest.encryption_keys


def test_of_dated_backups_the_newest_stay_and_other_files_are_left_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path)
    migrate.up(settings)
    (folder := tmp_path / "backups").mkdir()
    olds = [folder / f"llm-proxy-2025010{day}T030000Z.tar.gz" for day in (3, 1, 2)]
    kept = [folder / name for name in ("llm-proxy-20250101T030000Z.tar.gz.asc", "my-llm-proxy-20250101T030000Z.tar.gz", "x")]
    for path in (*olds, *kept):
        path.touch()
    made = make(settings, folder, "", keep=2)
    assert made.removed == [olds[1], olds[2]]
    assert sorted(folder.iterdir()) == sorted([made.path, olds[0], *kept])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making.archive, "write", fail)
    with pytest.raises(StartError, match="No space left on device"):
        make(settings, folder, "", keep=1)
    assert sorted(folder.iterdir()) == sorted([made.path, olds[0], *kept]), "what failed removes nothing, and leaves nothing"


def test_a_folder_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StartError, match=r"no/b\.tar\.gz: the backup cannot be made: No such file or directory"):
        make(settings_for(tmp_path), tmp_path / "no" / "b.tar.gz", "")


def test_what_could_not_be_restored_does_not_pass_for_a_backup(tmp_path: pathlib.Path) -> None:
    settings = settings_for(tmp_path)
    migrate.up(settings)
    left_behind(tmp_path / "events", *samples(1), name="a b")
    with pytest.raises(StartError, match="it holds a file 'events/a b-1/"):
        make(settings, tmp_path / "b.tar.gz", "")
    assert not (tmp_path / "b.tar.gz").exists()


async def test_beside_postgresql_all_but_the_database_is_in_it(tmp_path: pathlib.Path, postgres_url: str) -> None:
    settings = settings_for(tmp_path, DATABASE_URL=postgres_url)
    left_behind(tmp_path / "events", *samples(1), sinks=("file",))
    made = await asyncio.to_thread(make, settings, tmp_path / "b.tar.gz", "A=1\n")
    assert (made.manifest.database, made.manifest.migration) == ("postgres", migrate.known()[-1])
    with tarfile.open(made.path) as tar:
        assert "database.db" not in tar.getnames() and "events/gone-1/file.cursor" in tar.getnames()
