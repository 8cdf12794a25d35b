"""The units of deploy/systemd: nothing wrong in them for systemd itself, a sandbox, every secret, both sockets."""

import asyncio
import pathlib
import re
import subprocess
import sys

import pytest
from stage.asking import until
from stage.house import place_migrated
from stage.notified import notified
from stage.postgres import free_port
from stage.processes import ROOT, Process, house_environment
from stage.programs import needs, path_of
from stage.raw import connected

from llm_proxy.cli import units
from llm_proxy.settings import TABLE
from llm_proxy.settings.values import SECRET_KINDS

FOLDER = ROOT / "deploy" / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
UNITS = sorted([*SERVICES, *FOLDER.glob("*.socket")])
LIVE = b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n"


def lines(unit: pathlib.Path, *names: str) -> list[str]:
    """The assignments in a unit to these names, in order."""
    return [line for line in unit.read_text().splitlines() if line.partition("=")[0] in names]


def after(unit: pathlib.Path, comment: str) -> str:
    """What follows a comment, up to the next empty line."""
    return unit.read_text().partition(f"# {comment}")[2].partition("\n\n")[0]


@needs("systemd-analyze")
def test_systemd_finds_nothing_wrong(tmp_path: pathlib.Path) -> None:
    for unit in UNITS:
        # A template is looked at as its first instance; the program is one that is here.
        (tmp_path / unit.name.replace("@", "@1")).write_text(unit.read_text().replace(units.PROGRAM, sys.executable))
    command = [path_of("systemd-analyze"), "--man=no", "--recursive-errors=yes", "verify", *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_the_sandbox_is_tight(unit: pathlib.Path) -> None:
    command = [path_of("systemd-analyze"), "security", "--offline=true", "--no-pager", unit]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, env={"LC_ALL": "C.UTF-8"}).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found and float(found[1]) <= 1.5, said


def test_every_service_has_the_same_sandbox_and_every_secret_that_a_setting_may_be() -> None:
    secrets = [field.name.upper() for field in TABLE if field.metadata["parse"] in SECRET_KINDS]
    for unit in SERVICES:
        assert after(unit, "The sandbox") == after(SERVICES[0], "The sandbox") != ""
        assert lines(unit, "LoadCredential") == [f"LoadCredential={name}:/etc/llm-proxy/credentials/{name}" for name in secrets]
        # What setup always writes must be there; the rest may be missing.
        optional = [name for name in secrets if name not in ("MANAGEMENT_TOKEN", "ENCRYPTION_KEY")]
        assert lines(unit, "SetCredential") == [rf"SetCredential={name}:\n" for name in optional]


@needs("systemd-socket-activate")
async def test_both_sockets_of_the_socket_unit_are_served_as_their_order_says(tmp_path: pathlib.Path) -> None:
    unit = FOLDER / "llm-proxy.socket"
    [name] = [line.partition("=")[2] for line in lines(unit, "FileDescriptorName")]
    streams = [f"127.0.0.1:{free_port()}" for _ in lines(unit, "ListenStream")]
    place_migrated(tmp_path / "house.db")
    # It hands nothing of its environment on but what it is told to.
    environment = [f"--setenv={name}={value}" for name, value in house_environment(tmp_path).items()]
    environment.append(f"--setenv=NOTIFY_SOCKET={tmp_path / 'notify'}")
    listen = [f"--listen={stream}" for stream in streams]
    with notified(tmp_path / "notify") as told:
        process = Process(
            await asyncio.create_subprocess_exec(
                path_of("systemd-socket-activate"),
                *(*listen, *environment, f"--fdname={':'.join([name] * len(streams))}"),
                *(sys.executable, "-m", "llm_proxy", "server"),
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        )
        try:
            await process.until("Listening on")
            async with asyncio.timeout(20), connected(f"http://{streams[0]}") as early:
                # Who comes before there is a process wakes it up, and waits.
                await early.send(LIVE)
                served = await early.answer()
                assert served and served.status == 200
            await until(lambda: "READY=1" in told)
            assert f'"message":"the proxy listens on http://{streams[0]}"' in await process.until("the proxy listens on")
            assert f"http://{streams[1]}" in await process.until("the admin site listens on")
        finally:
            assert await process.stopped() == 0
