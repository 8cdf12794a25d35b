"""The archive: written whole or not at all, read only as it was written."""

import dataclasses
import gzip
import io
import pathlib
import random
import tarfile
from collections.abc import Callable

import pytest

from llm_proxy.backup.archive import describe, extract, read_manifest, write
from llm_proxy.backup.manifest import Manifest
from llm_proxy.errors import StartError

FILES = {"database.db": random.Random(1).randbytes(300_000), "events/host-1/00000001.seg": b"e" * 5000, "settings.env": b"A=1\n"}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, data in FILES.items():
        path = tmp_path / "content" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "content"


@pytest.fixture
def manifest(folder: pathlib.Path) -> Manifest:
    files = {name: describe(folder / name) for name in FILES}
    return Manifest("0.1.0", "0001_tables", "2026-11-21T03:00:00.000Z", "sqlite", {}, {}, files)


@pytest.fixture
def archive(tmp_path: pathlib.Path, folder: pathlib.Path, manifest: Manifest) -> pathlib.Path:
    write(tmp_path / "b.tar.gz", manifest, folder)
    return tmp_path / "b.tar.gz"


def taken(archive: pathlib.Path, folder: pathlib.Path) -> dict[str, bytes]:
    extract(archive, lambda name: folder / name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_written_is_taken_out_for_its_owner_alone(
    archive: pathlib.Path, manifest: Manifest, tmp_path: pathlib.Path
) -> None:
    assert archive.stat().st_mode & 0o777 == 0o600
    assert read_manifest(archive) == manifest
    assert taken(archive, tmp_path / "out") == FILES
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o600}


def test_any_tar_reads_it(archive: pathlib.Path) -> None:
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["manifest.json", *FILES]


def test_an_archive_that_cannot_be_written_leaves_the_one_before(
    archive: pathlib.Path, folder: pathlib.Path, manifest: Manifest
) -> None:
    before = archive.read_bytes()
    (folder / "settings.env").unlink()
    with pytest.raises(OSError, match=r"settings\.env"):
        write(archive, manifest, folder)
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.iterdir() if path.is_file()] == [archive.name]


@pytest.mark.parametrize("place", [0.001, 0.1, 0.5, 0.9, 0.99])
def test_a_byte_that_was_changed_is_noticed(archive: pathlib.Path, place: float) -> None:
    data = bytearray(archive.read_bytes())
    data[int(len(data) * place)] ^= 0x20
    archive.write_bytes(data)
    with pytest.raises(StartError, match=r"Take another backup|manifest cannot be read"):
        extract(archive, lambda name: None)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
def test_an_archive_that_is_cut_short_is_noticed(archive: pathlib.Path, share: float) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(StartError, match="damaged"):
        extract(archive, lambda name: None)


def rewritten(archive: pathlib.Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """The same archive with its members changed, and every checksum of gzip right."""
    with tarfile.open(archive) as tar:
        members = [(member, content.read()) for member in tar if (content := tar.extractfile(member))]
    change(members)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    archive.write_bytes(gzip.compress(raw.getvalue()))


def sized(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
    return info, data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda all: all.pop(), r"settings\.env is missing", id="a file left out"),
        pytest.param(lambda all: all.append(sized("database.db", b"x")), "'database.db' is not what", id="one twice"),
        pytest.param(lambda all: all.append(sized("../x", b"x")), "'../x' is not what", id="one outside"),
        pytest.param(
            lambda all: all.__setitem__(3, sized("settings.env", b"A=2\n")), r"checksum of settings\.env", id="other text"
        ),
        pytest.param(lambda all: all.__setitem__(3, sized("settings.env", b"", tarfile.SYMTYPE)), "is not what", id="a link"),
        pytest.param(lambda all: all.pop(0), "manifest cannot be read", id="no manifest in front"),
    ],
)
def test_an_archive_that_somebody_changed_is_refused(
    archive: pathlib.Path, tmp_path: pathlib.Path, change: Callable[[object], None], says: str
) -> None:
    rewritten(archive, change)
    with pytest.raises(StartError, match=says):
        extract(archive, lambda name: tmp_path / "out" / name)
    assert not (tmp_path / "x").exists()


def test_what_is_no_archive_is_named(tmp_path: pathlib.Path, archive: pathlib.Path, manifest: Manifest) -> None:
    with pytest.raises(StartError, match=r"none\.tar\.gz: cannot be read: No such file"):
        read_manifest(tmp_path / "none.tar.gz")
    archive.write_text("text\n" * 100)
    with pytest.raises(StartError, match="damaged or no backup"):
        read_manifest(archive)
    archive.write_bytes(gzip.compress(dataclasses.replace(manifest, files={}).encode()))
    with pytest.raises(StartError, match="damaged or no backup"):
        read_manifest(archive)
