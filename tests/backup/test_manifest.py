"""What a backup says of itself is read back, or refused in words."""

import dataclasses

import orjson
import pytest

from llm_proxy.backup.manifest import File, KeyUse, Manifest, decode
from llm_proxy.errors import StartError

MANIFEST = Manifest(
    version="0.1.0",
    migration="0004_list_indexes",
    created_at="2026-11-21T03:00:00.000Z",
    database="sqlite",
    holds={"tokens": 2},
    encryption_keys={"0a1b2c3d": KeyUse(3, 2)},
    files={"database.db": File(7, "ab"), "events/host-1/00000001.seg": File(0, "cd"), "events/dead-letters.jsonl": File(1, "ef")},
)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert decode(MANIFEST.encode()) == MANIFEST


def test_a_newer_format_is_refused_with_the_version_to_use() -> None:
    newer = {**dataclasses.asdict(MANIFEST), "format": 2, "version": "3.1.4", "whatever": 1}
    with pytest.raises(StartError, match=r"newer LLM Proxy \(3\.1\.4\)"):
        decode(orjson.dumps(newer))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"{}", orjson.dumps({**dataclasses.asdict(MANIFEST), "files": [1]}), MANIFEST.encode()[:-9]],
    ids=["nothing", "no JSON", "a list", "null", "no field", "other files", "cut short"],
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(StartError, match="no backup of LLM Proxy"):
        decode(data)


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/passwd", "events/../x", "events/./x", "events/.restoring/x", "events/a/b/c", "events/", "events//x"),
        *("other", "events/a/", "events/a/.x", "events/a\n", "database.db/x"),
    ],
)
def test_no_file_is_taken_that_a_backup_does_not_have(name: str) -> None:
    with pytest.raises(StartError, match="it holds a file"):
        decode(dataclasses.replace(MANIFEST, files={name: File(0, "")}).encode())
