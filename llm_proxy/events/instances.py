"""Which process a folder of the log belongs to."""

import contextlib
import fcntl
import os
import pathlib
from dataclasses import dataclass

from llm_proxy.events.disk import Disk

LOCK = "lock"
# More processes than this on one folder of folders are a mistake.
MOST_INSTANCES = 1000


@dataclass(frozen=True)
class Claim:
    """A folder that is this process's own, for as long as it lives or until `release`."""

    folder: pathlib.Path
    lock: int

    def release(self) -> None:
        """Let another process have it."""
        os.close(self.lock)

    def remove(self) -> None:
        """Give the folder up for good, once everything in it is delivered. What is set aside in it stays, and so does it."""
        for path in list(self.folder.iterdir()):
            if path.suffix in (".cursor", ".mark", ".tmp"):
                path.unlink()
        with contextlib.suppress(OSError):
            if {path.name for path in self.folder.iterdir()} == {LOCK}:
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
        self.release()


def claim_own(root: pathlib.Path, name: str) -> Claim:
    """A folder for this process: the first of `name-1`, `name-2` and so on that no living process has.

    A process that starts again so finds what it left.

    Raises:
        OSError: the disk does not let us.
    """
    for number in range(1, MOST_INSTANCES):
        folder = root / f"{name}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        if claim := _claim(folder):
            Disk().sync_folder(root)
            return claim
    raise OSError(f"{root}: {MOST_INSTANCES} processes have a folder here")


def claim_dead(root: pathlib.Path) -> list[Claim]:
    """The folders whose process is gone; theirs is now ours, to deliver what is in them."""
    claims: list[Claim] = []
    with contextlib.suppress(OSError):
        left = [folder for folder in sorted(root.iterdir()) if (folder / LOCK).exists() and any(folder.glob("*.seg"))]
        claims = [claim for folder in left if (claim := _claim(folder))]
    return claims


def living(root: pathlib.Path) -> list[str]:
    """The folders whose process lives."""
    names = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if (folder / LOCK).exists():
            if claim := _claim(folder):
                claim.release()
            else:
                names.append(folder.name)
    return names


def trim_dead(root: pathlib.Path, most_bytes: int) -> int:
    """Have the logs of dead instances hold no more than that together, by removing their oldest segments; how many went.

    For where no sink is: with one, whoever has it delivers and removes them.
    """
    removed = 0
    with contextlib.suppress(OSError):
        # Of living instances too: a claim keeps its owner out as it starts, so none is made without need.
        if sum(path.stat().st_size for path in root.glob("*/*.seg")) <= most_bytes:
            return 0
        claims = claim_dead(root)
        try:
            removed = _trim([claim.folder for claim in claims], most_bytes)
        finally:
            for claim in claims:
                if any(claim.folder.glob("*.seg")):
                    claim.release()
                else:
                    claim.remove()
    return removed


def _trim(folders: list[pathlib.Path], most_bytes: int) -> int:
    found = [(path.stat(), path) for folder in folders for path in folder.glob("*.seg")]
    found.sort(key=lambda entry: (entry[0].st_mtime_ns, entry[1]))
    excess, removed = sum(stat.st_size for stat, _ in found) - most_bytes, 0
    for stat, path in found:
        if excess <= 0:
            break
        path.unlink()
        excess -= stat.st_size
        removed += 1
    return removed


def _claim(folder: pathlib.Path) -> Claim | None:
    path = folder / LOCK
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    # Its process lives and holds the lock, or has just removed the folder: either way it is not ours to take.
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have removed it after we opened it; another process would lock another file then.
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return Claim(folder, fd)
    os.close(fd)
    return None
