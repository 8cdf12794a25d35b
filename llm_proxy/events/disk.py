"""The few calls on the file system that the log lives on, so that tests can put another one underneath."""

import os
import pathlib

Path = pathlib.Path


class Disk:
    """The real file system. Every call raises `OSError` when it fails."""

    # The one call of the event loop, hence without a frame of its own.
    write = staticmethod(os.write)

    def list(self, folder: Path) -> list[str]:
        """The names in a folder."""
        return [path.name for path in folder.iterdir()]

    def create(self, path: Path) -> int:
        """A new, empty file, open for appending."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """An existing file, open for writing from its beginning."""
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Give a descriptor back."""
        os.close(fd)

    def sync(self, fd: int) -> None:
        """Return once the content of the file is on the disk."""
        os.fdatasync(fd)

    def cut(self, fd: int, size: int) -> None:
        """Drop what stands behind the first `size` bytes."""
        os.ftruncate(fd, size)

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Up to `size` bytes."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def size(self, path: Path) -> int:
        """The length of a file."""
        return path.stat().st_size

    def replace(self, source: Path, target: Path) -> None:
        """Give a file another name, in the place of what has that name."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Take a file's name away."""
        path.unlink()

    def sync_folder(self, folder: Path) -> None:
        """Return once the names in the folder are on the disk."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
