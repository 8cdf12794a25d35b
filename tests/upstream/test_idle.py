"""Connections between two requests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from stage.profiles import shipped

from llm_proxy.upstream import idle as module
from llm_proxy.upstream.idle import IdleConnections
from llm_proxy.upstream.outgoing import Origin
from llm_proxy.upstream.protocol import Connection

ONE, OTHER = Origin(False, "one.example", 80), Origin(False, "other.example", 80)

Make = Callable[[Origin], Awaitable[Connection]]


@pytest.fixture
def idle() -> IdleConnections:
    """Room for three connections, two of them to one host."""
    return IdleConnections(shipped(max_idle=3, max_idle_per_host=2).apis["openai"])


@pytest.fixture
async def ends() -> list[asyncio.StreamReader]:
    """The other sides of the connections made."""
    return []


@pytest.fixture
async def make(idle: IdleConnections, ends: list[asyncio.StreamReader]) -> AsyncIterator[Make]:
    """Makes connections to a server that only listens."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(reader)
        stack.callback(writer.close)

    async with AsyncExitStack() as stack, await asyncio.start_server(serve, "127.0.0.1", 0) as server:

        async def connect(origin: Origin) -> Connection:
            loop, address = asyncio.get_running_loop(), server.sockets[0].getsockname()
            _, made = await loop.create_connection(lambda: Connection(origin, idle), *address)
            return made

        yield connect
        idle.close()


async def test_the_connection_that_was_used_last_is_taken_first(idle: IdleConnections, make: Make) -> None:
    first, second, third = await make(ONE), await make(ONE), await make(OTHER)
    assert [idle.put(connection) for connection in (first, second, third)] == [True] * 3
    assert [idle.take(origin) for origin in (ONE, ONE, ONE, OTHER, OTHER)] == [second, first, None, third, None]


async def test_they_are_bounded_per_host_and_together(idle: IdleConnections, make: Make) -> None:
    assert [idle.put(await make(ONE)) for _ in range(3)] == [True, True, False]
    assert [idle.put(await make(OTHER)) for _ in range(3)] == [True, False, False]
    assert idle.take(ONE)
    assert idle.put(await make(OTHER))


async def test_one_that_ends_makes_room_and_is_not_taken(idle: IdleConnections, make: Make) -> None:
    first, second = await make(ONE), await make(ONE)
    assert idle.put(first) and idle.put(second)
    second.abort()
    assert idle.put(third := await make(ONE))
    assert [idle.take(ONE) for _ in range(3)] == [third, first, None]


async def test_they_are_closed_after_a_while(
    idle: IdleConnections, make: Make, ends: list[asyncio.StreamReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    assert idle.put(first := await make(ONE))
    await asyncio.sleep(0.03)
    assert idle.put(second := await make(OTHER))
    async with asyncio.timeout(2):
        assert await ends[0].read() == b""
        assert first.is_closed and not second.is_closed
        assert await ends[1].read() == b""
    assert second.is_closed
    assert (idle._by_origin, idle._timer, idle._count) == ({}, None, 0)
