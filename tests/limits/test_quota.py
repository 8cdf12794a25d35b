"""Request quotas: exact among processes, cancellations, kills, changes of the quota."""

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO

import pytest
import stage.quota_racer

from llm_proxy import projects, tokens
from llm_proxy.db import Database
from llm_proxy.settings import Settings
from llm_proxy.vault import Vault


async def make_tokens(database: Database, quotas: Sequence[int | None]) -> list[tokens.Token]:
    """A token for each quota."""
    async with database.transaction() as tx:
        project = await projects.insert(tx, f"project {random.random()}", f"{random.random()}", {})
        made = []
        for quota in quotas:
            id, secret = tokens.new_token()
            columns = {"project_id": project.id, "name": "", "max_requests": quota}
            made.append(await tokens.insert(tx, Vault([]), columns, id, secret))
    return made


class Racer:
    """A process that takes part in a race."""

    def __init__(self, settings: Settings, path: pathlib.Path) -> None:
        if settings.db_driver == "postgres":
            given = {"DATABASE_URL": settings.database_url.reveal()}
        else:
            given = {"DATABASE_PATH": settings.database_path}
        self._process = subprocess.Popen(
            [sys.executable, stage.quota_racer.__file__, json.dumps(given), str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def wait_until_ready(self) -> None:
        assert self._output.readline() == "ready\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def wait(self) -> int:
        """Wait for its end; returns how often it asked."""
        output, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0
        return int(output)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None


@contextlib.contextmanager
def racing(settings: Settings, path: pathlib.Path, number: int) -> Iterator[list[Racer]]:
    """So many racers, all of them ready."""
    racers = [Racer(settings, path) for _ in range(number)]
    try:
        for racer in racers:
            racer.wait_until_ready()
        yield racers
    finally:
        for racer in racers:
            racer.kill()


def granted_in(path: pathlib.Path) -> collections.Counter[str]:
    """How many requests each token was granted."""
    return collections.Counter(path.read_text().split())


async def test_six_processes_grant_exactly_what_there_is(database: Database, settings: Settings, tmp_path: pathlib.Path) -> None:
    made = await make_tokens(database, [1 + number % 3 for number in range(500)])
    log = tmp_path / "granted"
    with racing(settings, log, 6) as racers:
        start = time.monotonic()
        for racer in racers:
            racer.go()
        asked = sum(await asyncio.gather(*(asyncio.to_thread(racer.wait) for racer in racers)))
        seconds = time.monotonic() - start
    print(f"{settings.db_driver}: {asked} takes in {seconds:.2f} s, {asked / seconds:.0f} a second")
    assert granted_in(log) == {token.id: token.max_requests for token in made}
    rows = await database.fetch_all("SELECT id, request_count FROM tokens")
    assert {row["id"]: row["request_count"] for row in rows} == {token.id: token.max_requests for token in made}
