"""systemd hears from us; its sockets are taken over."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

import llm_proxy
from llm_proxy.systemd import notify, passed_sockets, watchdog_seconds


@pytest.fixture(params=["listener", "@llm-proxy-test"], ids=["path", "abstract"])
def listener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket at which systemd listens; the working directory is the test's own."""
    name = request.param if request.param[0] != "@" else f"{request.param}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(5)
        bound.bind("\0" + name[1:] if name.startswith("@") else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield bound


def test_state_is_told(listener: socket.socket) -> None:
    notify("READY=1")
    notify("STOPPING=1")
    assert [listener.recv(100), listener.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


def test_nobody_listening_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "gone")
    notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("1000000", "", 0.5),
        ("0", None, None),
        ("soon", None, None),
        ("²", None, None),
        (None, None, None),
    ],
)
def test_watchdog_is_fed_twice_in_its_time(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="none passed"),
        pytest.param({"LISTEN_FDS": "1"}, id="for nobody"),
        pytest.param({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, id="for another process"),
        pytest.param({"LISTEN_FDS": "many", "LISTEN_PID": "own"}, id="unreadable count"),
    ],
)
def test_sockets_that_are_not_ours_are_left_alone(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert passed_sockets() == {}


TAKE_OVER = """
from llm_proxy.systemd import passed_sockets
for name, passed in passed_sockets().items():
    print(name, passed.getsockname()[1], passed.getblocking(), passed.get_inheritable())
"""


@pytest.mark.parametrize(
    ("names", "given"),
    [
        ("proxy:admin", ["proxy", "admin"]),
        ("", ["0", "1"]),
        ("proxy", ["proxy", "1"]),
        (":admin", ["0", "admin"]),
        ("a:a", ["a", "1"]),
    ],
)
def test_passed_sockets_come_under_their_names(names: str, given: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        # The shell puts the sockets where systemd puts them; the pid that it names stays through the exec.
        script = f'exec 250<&{one.fileno()} 251<&{two.fileno()} 3<&250 4<&251; LISTEN_PID=$$ exec "$0" -c "$1"'
        environment = {
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": names,
            "PYTHONPATH": str(pathlib.Path(llm_proxy.__file__).parent.parent),
        }
        done = subprocess.run(
            ["bash", "-c", script, sys.executable, TAKE_OVER],
            env=environment,
            pass_fds=(one.fileno(), two.fileno()),
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        ports = [one.getsockname()[1], two.getsockname()[1]]
    assert done.stdout.splitlines() == [f"{name} {port} False False" for name, port in zip(given, ports, strict=True)]
