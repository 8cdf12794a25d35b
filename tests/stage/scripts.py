"""What a scripted provider may do with a request."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from stage.provider import Exchange, Script


def sends(*data: bytes, close: bool = False) -> Script:
    """Answers with these bytes, each piece by itself, and maybe with a FIN."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(*data)
        if close:
            exchange.writer.close()

    return script


def holds(*data: bytes) -> Script:
    """Answers with these bytes, then falls silent until the other side closes."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(*data)
        await exchange.until_closed()

    return script


def resets(*data: bytes) -> Script:
    """Answers with these bytes, then with a RST once they must have arrived."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(*data)
        await asyncio.sleep(0.02 if data else 0)
        exchange.reset()

    return script


def in_turn(*scripts: Script) -> Script:
    """The first request gets the first script, and so on; the last one serves the rest."""
    waiting = list(scripts)

    async def script(exchange: Exchange) -> None:
        await (waiting.pop(0) if len(waiting) > 1 else waiting[0])(exchange)

    return script


@contextmanager
def black_hole() -> Iterator[str]:
    """A URL where connections are neither accepted nor refused: the queue of its listener is full."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
