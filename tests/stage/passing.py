"""Servers that are started as systemd starts them, with sockets that are passed to them."""

import asyncio
import fcntl
import pathlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stage.processes import Server, house_environment

AS_SYSTEMD = """
import os, sys
passed = [int(number) for number in sys.argv[1].split(",")]
for place, number in enumerate(passed):
    os.dup2(number, 3 + place)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(passed))}
os.execv(sys.executable, [sys.executable, "-m", "llm_proxy", "server"])
"""


@asynccontextmanager
async def started_by(script: str, argument: str, folder: pathlib.Path, *fds: int, **env: str) -> AsyncIterator[Server]:
    """A server that a script becomes, once it has set the scene."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, argument),
        cwd=folder,
        env=house_environment(folder, **env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=fds,
    )
    run = Server(process)
    try:
        await run.listens(None)
        yield run
    finally:
        run.send(signal.SIGKILL)
        await run.ended()


@asynccontextmanager
async def passed_to(folder: pathlib.Path, *listeners: socket.socket, **env: str) -> AsyncIterator[Server]:
    """A server that is started as systemd does, with these sockets."""
    copies = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 100) for one in listeners]
    try:
        async with started_by(AS_SYSTEMD, ",".join(map(str, copies)), folder, *copies, **env) as run:
            yield run
    finally:
        for number in copies:
            socket.close(number)
