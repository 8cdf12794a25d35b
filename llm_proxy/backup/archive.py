"""The archive that a backup is: a tar.gz with its manifest in front."""

import contextlib
import gzip
import hashlib
import io
import os
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

from llm_proxy.backup.manifest import File, Manifest, decode
from llm_proxy.errors import StartError
from llm_proxy.events.disk import Disk

MANIFEST = "manifest.json"
MOST_MANIFEST = 16 * 1024 * 1024
CHUNK = 1024 * 1024


def describe(path: pathlib.Path) -> File:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        return File(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def write(path: pathlib.Path, manifest: Manifest, folder: pathlib.Path) -> None:
    """Write the archive of a folder under a temporary name, have the disk keep it, then give it its name; mode 0600.

    Raises:
        OSError: the disk would not; what had the name is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fd = os.open(beside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:
                _add(tar, MANIFEST, io.BytesIO(data := manifest.encode()), len(data))
                for name, facts in manifest.files.items():
                    with (folder / name).open("rb") as content:
                        _add(tar, name, content, facts.bytes)
            file.flush()
            os.fsync(fd)
        beside.replace(path)
        Disk().sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    tar.addfile(info, content)


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest of an archive; the rest of it is not looked at.

    Raises:
        StartError: it is no backup, or cannot be read.
    """
    with _opened(path) as tar:
        return _manifest_of(tar)


def extract(path: pathlib.Path, place: Callable[[str], pathlib.Path | None]) -> None:
    """Take the files out of an archive, each with its checksum verified.

    Args:
        place: says where to put a file, by its name in the archive; None only verifies it.

    Raises:
        StartError: a file is missing, or not as it was.
        OSError: what is taken out cannot be written.
    """
    with _opened(path) as tar:
        left: dict[str, File] = dict(_manifest_of(tar).files)
        while member := tar.next():
            facts = left.pop(member.name, None)
            content = tar.extractfile(member) if member.isreg() else None
            if facts is None or content is None or member.size != facts.bytes:
                raise _damaged(path, f"{member.name!r} is not what its manifest says")
            if _take(content, place(member.name)) != facts.sha256:
                raise _damaged(path, f"the checksum of {member.name} is wrong")
    if left:
        raise _damaged(path, f"{min(left)} is missing")


def _take(content: IO[bytes], target: pathlib.Path | None) -> str:
    """Copy a file, if anywhere; its checksum."""
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        file = None
        if target:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # As root, in a folder of somebody else: nothing that stands there is followed or written over.
            fd = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            file = stack.enter_context(os.fdopen(fd, "wb"))
        while data := content.read(CHUNK):
            digest.update(data)
            if file:
                file.write(data)
        if file:
            file.flush()
            os.fsync(file.fileno())
    return digest.hexdigest()


def _manifest_of(tar: tarfile.TarFile) -> Manifest:
    member = tar.next()
    content = tar.extractfile(member) if member and member.name == MANIFEST and member.isreg() else None
    return decode(content.read(MOST_MANIFEST) if content else b"")


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tarfile.TarFile]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise StartError(f"{path}: cannot be read: {error.strerror or error}.") from error
    with file:
        try:
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                yield tar
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, str(error) or "it is cut short") from error


def _damaged(path: pathlib.Path, why: str) -> StartError:
    return StartError(f"{path} is damaged or no backup of LLM Proxy: {why}. Take another backup.")
