"""The socket at which systemd hears of its services."""

import asyncio
import pathlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def notified(path: pathlib.Path) -> Iterator[list[str]]:
    """What is told at this path, the value of NOTIFY_SOCKET, while the block runs."""
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(listener, lambda: told.append(listener.recv(200).decode()))
        try:
            yield told
        finally:
            loop.remove_reader(listener)
