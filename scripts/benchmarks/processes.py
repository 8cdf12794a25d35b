"""Processes on cores of their own, with what they take of processor and memory."""

import contextlib
import ctypes
import os
import pathlib
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks.machine import real_time

FILES = 65536
START_SECONDS = 60.0
STOP_SECONDS = 5.0
TICK = 1 / os.sysconf("SC_CLK_TCK")
MIB = 2**20


class Failed(Exception):
    """A part of the scene does not work; the text says which and why."""


def _prepare() -> None:
    """In a child, before it becomes its program: it dies with us, and may open many files."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


class Process:
    """A program on one core; what it says is in a file of its folder."""

    def __init__(self, name: str, command: Sequence[str], core: int, folder: pathlib.Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.out"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*real_time(), "taskset", "-c", str(core), *command],
                cwd=folder,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_prepare,
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise when it has ended."""
        if self._process.poll() is not None:
            said = self.log.read_text(errors="replace")[-2000:]
            raise Failed(f"{self.name} ended with exit code {self._process.returncode}. It said:\n{said}")

    def wait_for(self, port: int) -> None:
        """Wait until it accepts connections."""
        end = time.monotonic() + START_SECONDS
        while True:
            self.check()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            if time.monotonic() > end:
                raise Failed(f"{self.name} does not listen on {port} after {START_SECONDS:.0f} s. See {self.log}")
            time.sleep(0.005)

    def stop(self) -> None:
        """Ask it to end, and end it when it does not."""
        for end in (self._process.terminate, self._process.kill):
            if self._process.poll() is None:
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)

    def cpu_seconds(self) -> float:
        """Processor time of all its threads and children so far."""
        return sum(ticks_of(_stat(pid)) for pid in family(self.pid)) * TICK

    def rss(self) -> float:
        """Resident memory in MiB, its children's too."""
        pages = sum(int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in family(self.pid))
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def _stat(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text()


def ticks_of(stat: str) -> int:
    """Clock ticks of a process in user and system mode; its name may hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def family(pid: int) -> list[int]:
    """A process, its children, theirs."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in family(int(child)))]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    name: str, command: Sequence[str], core: int, folder: pathlib.Path, env: Mapping[str, str], port: int
) -> Iterator[Process]:
    """A process that listens, for the length of the block."""
    process = Process(name, command, core, folder, env)
    try:
        process.wait_for(port)
        yield process
    finally:
        process.stop()
