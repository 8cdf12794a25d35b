"""A disk in memory that can lose its power."""

import errno
import random

from llm_proxy.events.disk import Disk, Path

SECTOR = 512


class Inode:
    """A file: what processes see of it, what is surely on the disk, the writes between the two."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.durable = bytearray()
        self.unsynced: list[tuple[int, bytes | None]] = []

    def write(self, offset: int, data: bytes) -> None:
        put(self.seen, offset, data)
        self.unsynced.append((offset, data))

    def cut(self, size: int) -> None:
        del self.seen[size:]
        self.unsynced.append((size, None))

    def sync(self) -> None:
        self.durable, self.unsynced = bytearray(self.seen), []

    def lose_power(self, chance: random.Random) -> None:
        """Of the unsynced writes any sectors may have reached the disk; the length may have without the content."""
        longest = len(self.seen)
        for offset, data in self.unsynced:
            if data is None:
                if chance.random() < 0.5:
                    del self.durable[offset:]
                continue
            while data:
                piece = data[: SECTOR - offset % SECTOR]
                if chance.random() < 0.5:
                    put(self.durable, offset, piece)
                offset, data = offset + len(piece), data[len(piece) :]
        if self.unsynced and chance.random() < 0.3 and len(self.durable) < longest:
            self.durable.extend(bytes(longest - len(self.durable)))
        self.seen, self.unsynced = bytearray(self.durable), []


def put(content: bytearray, offset: int, data: bytes) -> None:
    """Write into a content, over a hole of zeros where it is shorter."""
    content.extend(bytes(max(offset - len(content), 0)))
    content[offset : offset + len(data)] = data


class SimulatedDisk(Disk):
    """One folder on such a disk.

    Attributes:
        room: how many more bytes fit, None for any number.
        refusing: whether it takes nothing at all.
    """

    def __init__(self) -> None:
        self.room: int | None = None
        self.refusing = False
        self.names: dict[str, Inode] = {}
        # What each name stood for since the folder was synced last, oldest first.
        self._history: dict[str, list[Inode | None]] = {}
        self._open: dict[int, tuple[Inode, bool]] = {}
        self._next = 3

    def _check(self) -> None:
        if self.refusing:
            raise OSError(errno.EIO, "the disk refuses")

    def _find(self, path: Path) -> Inode:
        if path.name not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self.names[path.name]

    def _name(self, name: str, inode: Inode | None) -> None:
        self._history.setdefault(name, [self.names.get(name)]).append(inode)
        if inode is None:
            del self.names[name]
        else:
            self.names[name] = inode

    def _opened(self, inode: Inode, appending: bool) -> int:
        self._next += 1
        self._open[self._next] = inode, appending
        return self._next

    def write(self, fd: int, data: bytes) -> int:  # type: ignore[override]
        if fd not in self._open:
            raise OSError(errno.EBADF, "no such descriptor")
        self._check()
        inode, appending = self._open[fd]
        offset = len(inode.seen) if appending else 0
        if self.room is not None:
            growth = max(offset + len(data) - len(inode.seen), 0)
            data = data[: len(data) - max(growth - self.room, 0)]
            if not data:
                raise OSError(errno.ENOSPC, "no space left")
            self.room -= min(growth, self.room)
        inode.write(offset, data)
        return len(data)

    def list(self, folder: Path) -> list[str]:
        return sorted(self.names)

    def create(self, path: Path) -> int:
        self._check()
        if path.name in self.names:
            raise FileExistsError(errno.EEXIST, "it exists", str(path))
        self._name(path.name, Inode())
        return self._opened(self.names[path.name], True)

    def open(self, path: Path) -> int:
        return self._opened(self._find(path), False)

    def close(self, fd: int) -> None:
        del self._open[fd]

    def sync(self, fd: int) -> None:
        self._check()
        self._open[fd][0].sync()

    def cut(self, fd: int, size: int) -> None:
        self._check()
        self._open[fd][0].cut(size)

    def read(self, path: Path, offset: int, size: int) -> bytes:
        return bytes(self._find(path).seen[offset : offset + size])

    def size(self, path: Path) -> int:
        return len(self._find(path).seen)

    def replace(self, source: Path, target: Path) -> None:
        self._check()
        inode = self._find(source)
        self._name(target.name, inode)
        self._name(source.name, None)

    def unlink(self, path: Path) -> None:
        self._check()
        self._find(path)
        self._name(path.name, None)

    def sync_folder(self, folder: Path) -> None:
        self._check()
        self._history.clear()

    @property
    def open_files(self) -> int:
        """How many descriptors are in use."""
        return len(self._open)

    def crash(self) -> None:
        """The process ends; the disk does not notice."""
        self._open.clear()

    def lose_power(self, chance: random.Random) -> None:
        """Every name goes back to anything it stood for since the last sync, every file to any mixture."""
        self.crash()
        for name, states in self._history.items():
            state = chance.choice(states)
            self.names.pop(name, None)
            if state is not None:
                self.names[name] = state
        self._history.clear()
        for inode in {id(each): each for each in self.names.values()}.values():
            inode.lose_power(chance)
