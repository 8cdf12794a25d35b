"""deploy/BACKUP.md: its units are whole, its commands do what it says."""

import contextlib
import os
import pathlib
import re
import shlex
import signal
import sqlite3
import subprocess
import sys

import pytest
from stage import programs
from stage.asking import until
from stage.house import ENCRYPTION_KEY, House, place_migrated
from stage.processes import command, environment

GUIDE = (pathlib.Path(__file__).parents[2] / "deploy" / "BACKUP.md").read_text()
UNITS = dict(re.findall(r"```ini\n# /etc/systemd/system/(\S+)\n(.*?)```", GUIDE, re.DOTALL))


@programs.needs("systemd-analyze")
def test_the_units_are_whole(tmp_path: pathlib.Path) -> None:
    assert len(UNITS) == 2
    for name, text in UNITS.items():
        # The program is not installed where tests run.
        (tmp_path / name).write_text(
            text.replace("/opt/llm-proxy/current/bin/llm-proxy", "/bin/true").replace("User=llm-proxy\n", "")
        )
    arguments = [programs.path_of("systemd-analyze"), "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_LOG_LEVEL": "notice"}
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_nightly_backup_knows_a_database_whose_url_is_a_secret() -> None:
    # Every other secret it can do without.
    service = (pathlib.Path(__file__).parents[2] / "deploy/systemd/llm-proxy.service").read_text()
    wanted = re.findall(r"^(?:Load|Set)Credential=DATABASE_URL.*$", service, re.MULTILINE)
    assert len(wanted) == 2
    assert all(line in UNITS["llm-proxy-backup.service"].splitlines() for line in wanted)


async def test_a_backup_that_systemd_stops_leaves_no_copy_of_the_database_behind(tmp_path: pathlib.Path) -> None:
    place_migrated(tmp_path / "house.db")
    told = re.search(r"^KillSignal=(\w+)$", UNITS["llm-proxy-backup.service"], re.MULTILINE)
    with contextlib.closing(sqlite3.connect(tmp_path / "house.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        async with command("backup", "kept/", "--db", "house.db", folder=tmp_path) as run:
            await until(lambda: bool(list(tmp_path.glob("kept/.*/database.db"))), 20)
            run.send(signal.Signals[told[1] if told else "SIGTERM"])
            holder.close()
            assert await run.ended() != 0
    assert not list((tmp_path / "kept").iterdir())


def shell(root: pathlib.Path, line: str) -> str:
    """Run a line of the guide as if `root` were the root of the file system."""
    line = re.sub(r"(?<![\w.])/(opt|etc|var|root)/", rf"{shlex.quote(str(root))}/\1/", line)
    done = subprocess.run(["/bin/sh", "-ec", line], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


@pytest.fixture
def root(tmp_path: pathlib.Path, house: House) -> pathlib.Path:
    """A machine on which it is installed; `house` is what runs there."""
    settings, root = house.context.settings, tmp_path / "machine"
    for name in ("opt/llm-proxy/current/bin", "etc/llm-proxy/credentials", "var/lib/llm-proxy", "root"):
        (root / name).mkdir(parents=True)
    program = root / "opt/llm-proxy/current/bin/llm-proxy"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m llm_proxy "$@"\n')
    program.chmod(0o755)
    env = f"DATABASE_PATH={settings.database_path}\nEVENT_DIR={settings.event_dir}\n"
    (root / "etc/llm-proxy/llm-proxy.env").write_text(env)
    return root


async def test_its_commands_back_up_what_runs_and_restore_it(house: House, root: pathlib.Path) -> None:
    await house.token_for("http://127.0.0.1:1")
    _try(root)


def _try(root: pathlib.Path) -> None:
    [service], [cron] = re.findall(r"ExecStart=(.*)", GUIDE), re.findall(r"0 3 \* \* \* llm-proxy (.*)", GUIDE)
    assert "1 tokens" in shell(root, service) and "1 tokens" in shell(root, cron)
    [archive, *_] = sorted((root / "var/backups/llm-proxy").iterdir())
    archive.rename(root / "root/backup.tar.gz")
    env = root / "etc/llm-proxy/llm-proxy.env"
    env.write_text("DATABASE_PATH=data/llm-proxy.db\n")
    credential = root / "etc/llm-proxy/credentials/ENCRYPTION_KEY"
    credential.write_text(ENCRYPTION_KEY)
    [restore] = re.findall(r"```sh\n([^`]*restore --check[^`]*)```", GUIDE)
    said = shell(root, restore)
    credential.unlink()
    assert "can be restored here" in said and "Restored " in said
    assert (root / "var/lib/llm-proxy/data/llm-proxy.db").exists() and (root / "var/lib/llm-proxy/data/events").exists()
