"""wrk as the load: its script, its run, what it found."""

import json
import pathlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.machine import program, real_time
from benchmarks.processes import Failed

CONNECTIONS = 32
# wrk counts what takes longer as an error; a slow stream takes five seconds.
TIMEOUT = 60
_LAST_WORDS = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    "RESULT requests=%d bytes=%d duration=%d connect=%d read=%d write=%d status=%d timeout=%d p50=%.1f p99=%.1f\\n",
    summary.requests, summary.bytes, summary.duration, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Ask:
    """The request that is sent again and again, after a pause in milliseconds."""

    path: str = "/v1/chat/completions"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    pause: int = 0


@dataclass(frozen=True)
class Load:
    """What wrk found; times are milliseconds.

    Attributes:
        errors: what went wrong, by kind, kinds without any left out.
        took: the seconds it really lasted.
    """

    requests: int
    bytes: int
    took: float
    p50: float
    p99: float
    errors: Mapping[str, int]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.took


def lua(ask: Ask) -> str:
    """wrk's script for a request."""
    lines = [f"wrk.method = {_quoted(ask.method)}"]
    lines += [f"wrk.headers[{_quoted(name)}] = {_quoted(value)}" for name, value in ask.headers.items()]
    if ask.body:
        lines += [f"wrk.body = {_quoted(ask.body)}"]
    if ask.pause:
        lines += [f"function delay() return {ask.pause} end"]
    return "\n".join(lines) + _LAST_WORDS


def _quoted(text: str) -> str:
    """A Lua string: JSON writes printable ASCII in the same way."""
    return json.dumps(text)


def parse(said: str) -> Load:
    """What wrk found, of what it said.

    Raises:
        Failed: it did not say.
    """
    line = re.search(r"^RESULT (.+)$", said, re.MULTILINE)
    if not line:
        raise Failed(f"wrk said no result:\n{said}")
    found = {name: float(value) for name, _, value in (word.partition("=") for word in line[1].split())}
    kinds = ("connect", "read", "write", "status", "timeout")
    return Load(
        requests=int(found["requests"]),
        bytes=int(found["bytes"]),
        took=found["duration"] / 1e6,
        p50=found["p50"] / 1000,
        p99=found["p99"] / 1000,
        errors={kind: int(found[kind]) for kind in kinds if found[kind]},
    )


def run(url: str, ask: Ask, seconds: float, core: int, folder: pathlib.Path, connections: int = CONNECTIONS) -> Load:
    """Load for some seconds, from one core."""
    script = folder / "wrk.lua"
    script.write_text(lua(ask))
    words = [
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        f"{TIMEOUT}s",
        "-s",
        str(script),
        url + ask.path,
    ]
    command = [*real_time(), "taskset", "-c", str(core), program("wrk"), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 2 * TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"wrk did not end in time, against {url}{ask.path}.") from error
    return parse(done.stdout + done.stderr)
