"""How far each sink has come in the log, kept in a file."""

import contextlib
import errno

from llm_proxy.events.disk import Disk, Path
from llm_proxy.events.records import HEAD_SIZE, decode, encode

_PAYLOAD = b"cursor"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Cursor:
    """The place of one sink.

    The file is written beside, synced and renamed, so that it is always whole. Where the disk has no room for that it is
    overwritten in its place, or a full log could never be emptied; were that torn, the sink would begin anew, and get
    again what it had, but miss nothing.

    Attributes:
        known: whether the file said where the sink is.
        position: the last sequence that the sink is done with.
        saved: the last one of which the disk is sure; what comes after it must stay in the log.
    """

    def __init__(self, disk: Disk, folder: Path, sink: str) -> None:
        self._disk, self._folder = disk, folder
        self._path = folder / f"{sink}.cursor"
        self.sink = sink
        self.known = False
        self.position = 0
        self.saved = 0

    def load(self) -> None:
        """Read the file; without a sound one the place stays unknown."""
        try:
            data = self._disk.read(self._path, 0, HEAD_SIZE + len(_PAYLOAD))
        except OSError:
            return
        for record in decode(data):
            self.known, self.position, self.saved = True, record.sequence, record.sequence

    def begin_at(self, position: int) -> None:
        """Give a sink that is new here its place."""
        self.position = position
        self.known = True
        self.save()

    def advance(self, position: int) -> None:
        """Note that the sink is done with everything up to `position`."""
        self.position = max(self.position, position)

    def save(self) -> bool:
        """Write the place to the disk; False when the disk would not, and then nothing changes but for later repetitions."""
        position = self.position
        try:
            try:
                self._replace(encode(position, _PAYLOAD))
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                self._overwrite(encode(position, _PAYLOAD))
        except OSError:
            return False
        self.saved = max(self.saved, position)
        return True

    def _replace(self, data: bytes) -> None:
        beside = self._path.with_suffix(".tmp")
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(beside)
        self._write(self._disk.create(beside), data)
        self._disk.replace(beside, self._path)
        self._disk.sync_folder(self._folder)

    def _overwrite(self, data: bytes) -> None:
        self._write(self._disk.open(self._path), data)

    def _write(self, fd: int, data: bytes) -> None:
        try:
            if self._disk.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, "the file could only be written in part")
            self._disk.sync(fd)
        finally:
            self._disk.close(fd)
