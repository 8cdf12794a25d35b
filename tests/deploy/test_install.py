"""scripts/install and scripts/upgrade below a throw-away root: done twice, and back by itself where the new version fails."""

import contextlib
import fcntl
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys

import pytest
from stage import wheels
from stage.postgres import free_port
from stage.processes import ROOT

from llm_proxy.db import migrate

MIGRATIONS = "llm_proxy/sql/migrations"
NEXT = {
    f"{MIGRATIONS}/9999_next.sql": "CREATE TABLE next (id INTEGER);\n",
    f"{MIGRATIONS}/9999_next.rollback.sql": "DROP TABLE next;\n",
}
# Its migration goes well; then it never serves.
BROKEN = {
    **NEXT,
    "llm_proxy/server.py": "\n\nasync def serve(context, started=None):\n    raise SystemExit('this release is broken')\n",
    "llm_proxy/units/llm-proxy.service": "# of the broken release\n",
}


class Machine:
    """A throw-away root, and the releases that come to it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.root = folder / "a root"
        self._wheel = wheels.build(folder)
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHON": sys.executable,
            # Nothing is downloaded: the packages are those of the tests.
            "PYTHONPATH": str(wheels.installed_packages(folder / "packages")),
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "LISTEN_ADDR": f"127.0.0.1:{free_port()}",
            "ADMIN_UI_LISTEN_ADDR": "127.0.0.1:0",
        }

    def run(self, script: str, version: str, changes: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """scripts/install or scripts/upgrade with a release."""
        arguments = self._arguments(script, version, changes or {})
        return subprocess.run(arguments, env=self._environment, capture_output=True, text=True, timeout=120)

    def hung_up(self, version: str, changes: dict[str, str]) -> int:
        """The exit code of an upgrade whose terminal goes away once the service is stopped."""
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            self._arguments("upgrade", version, changes),
            env=self._environment,
            stderr=theirs,
            # What nohup runs ignores it, and so would the script.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        os.close(theirs)
        said = b""
        while b"Stopping" not in said:
            said += os.read(ours, 1000)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        return process.wait(120)

    def _arguments(self, script: str, version: str, changes: dict[str, str]) -> list[object]:
        wheel = wheels.release(self._wheel, version, changes)
        return [ROOT / "scripts" / script, "--root", self.root, "--from", wheel]

    @property
    def version(self) -> str:
        """The version in use, by what it says of itself."""
        program = self.root / "opt/llm-proxy/current/bin/llm-proxy"
        done = subprocess.run([program, "--version"], env=self._environment, capture_output=True, text=True, check=True)
        return done.stdout.split()[-1]

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """What a statement gives on the service's database."""
        with contextlib.closing(sqlite3.connect(self.root / "var/lib/llm-proxy/llm-proxy.db")) as database, database:
            return database.execute(statement).fetchall()

    @property
    def migrations(self) -> list[object]:
        """What the database has."""
        return [row[0] for row in self.sql("SELECT migration_id FROM _yoyo_migration ORDER BY 1")]

    def files(self, folder: str) -> dict[str, str]:
        """What is in a folder."""
        return {path.name: path.read_text() for path in (self.root / folder).iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.mark.timeout(300)  # Python's own tools, four times over, on a machine busy with other tests.
def test_install_and_upgrade_twice_with_a_failure_in_between_that_goes_back_by_itself(machine: Machine) -> None:
    assert "scripts/install does that" in machine.run("upgrade", "1.0").stderr

    done = machine.run("install", "1.0")
    assert done.returncode == 0, done.stderr
    secrets, units = machine.files("etc/llm-proxy/credentials"), machine.files("etc/systemd/system")
    assert secrets.keys() == {"MANAGEMENT_TOKEN", "ENCRYPTION_KEY"}
    assert "ExecStart=/opt/llm-proxy/current/bin/llm-proxy server" in units["llm-proxy.service"]
    machine.sql("INSERT INTO projects (id, name, is_active, created_at, updated_at) VALUES ('p', 'kept', 1, '2026', '2026')")

    # What an operator leaves there.
    (machine.root / "etc/llm-proxy/credentials/ENCRYPTION_KEY.bak").write_text("the one before")
    own = [machine.root / f"var/lib/llm-proxy/backups/llm-proxy-2026010{day}T030000Z.tar.gz" for day in range(1, 6)]
    own[0].parent.mkdir()
    for path in own:
        path.touch()
    secrets = machine.files("etc/llm-proxy/credentials")

    assert machine.run("install", "1.0").returncode == 0, "a second run is harmless"
    assert "scripts/upgrade brings 1.1" in machine.run("install", "1.1").stderr

    done = machine.run("upgrade", "1.1", BROKEN)
    assert done.returncode == 1, done.stderr
    assert "this release is broken" in done.stderr and "1.0 serves again" in done.stderr
    assert (machine.version, machine.migrations) == ("1.0", migrate.known())
    assert machine.files("etc/systemd/system") == units
    assert machine.hung_up("1.1", NEXT) == 128 + signal.SIGHUP
    assert (machine.version, machine.migrations) == ("1.0", migrate.known())

    (folder := machine.root / "etc/systemd/system").rename(folder.with_name("away"))
    folder.write_text("no folder")
    done = machine.run("upgrade", "1.1", NEXT)
    assert done.returncode == 1 and "1.0 serves again" in done.stderr and "units" in done.stderr, done.stderr
    folder.unlink()
    folder.with_name("away").rename(folder)

    lock = os.open(machine.root / "opt/llm-proxy", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert "Another" in machine.run("upgrade", "1.3", NEXT).stderr
    os.close(lock)

    for _ in range(2):
        done = machine.run("upgrade", "1.3", NEXT)
        assert done.returncode == 0, done.stderr
        assert (machine.version, machine.migrations) == ("1.3", [*migrate.known(), "9999_next"])
    assert "installed already" in done.stderr
    assert machine.files("etc/llm-proxy/credentials") == secrets
    assert machine.sql("SELECT name FROM projects WHERE id = 'p'") == [("kept",)]
    assert all(path.exists() for path in own), "the copies that it made are all that it removes"
    # The one before stays, the broken one does not.
    assert {path.name for path in (machine.root / "opt/llm-proxy/versions").iterdir()} == {"1.0", "1.3"}


def test_one_of_several_units_that_has_ended_is_no_success(tmp_path: pathlib.Path) -> None:
    # As systemctl does it, is-active is content with one unit of several.
    (tmp_path / "systemctl").write_text('#!/bin/sh\ncase "$*" in start*) ;; *socket*) ;; *) exit 3 ;; esac\n')
    (tmp_path / "systemctl").chmod(0o755)
    script = (
        '. "$(dirname "$0")/deployment"; sleep() { :; }; until_ready() { :; }; start 1.0 llm-proxy.socket llm-proxy@1.service'
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["/bin/sh", "-c", script, ROOT / "scripts" / "upgrade"], env=environment, timeout=30)
    assert done.returncode == 1
