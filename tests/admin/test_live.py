"""Streams to open pages carry messages, and end with the page, the session or the process."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping

import pytest
from aiohttp import web
from stage.house import House
from stage.visitor import Visitor

from llm_proxy.admin import live
from llm_proxy.admin.visits import Visit, page
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.middleware import CONTEXT, frame

Messages = AsyncGenerator[Mapping[str, object], None]


class Source:
    """Says what it is given, and nothing at every tick otherwise."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def messages(self) -> Messages:
        try:
            while True:
                try:
                    yield await asyncio.wait_for(self.queue.get(), 0.02)
                except TimeoutError:
                    yield live.NOTHING
        finally:
            self.ended.set()

    async def serve(self, visit: Visit) -> web.StreamResponse:
        return await live.stream(visit, self.messages())


@pytest.fixture
async def source() -> Source:
    return Source()


@pytest.fixture
async def url(house: House, source: Source) -> AsyncGenerator[str, None]:
    """A site of this house with one stream."""
    app = web.Application(middlewares=[frame])
    app[CONTEXT] = house.context
    app.router.add_get("/admin/stream", page(source.serve))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/admin/stream"
    await runner.cleanup()


async def test_messages_arrive_at_once_and_the_source_ends_with_the_page(visitor: Visitor, source: Source, url: str) -> None:
    async with visitor.session.get(url) as reply:
        assert reply.content_type == "text/event-stream"
        for message in ({"part": "<b>one</b>"}, {"part": "line\nbreak"}):
            source.queue.put_nowait(message)
            assert json.loads((await reply.content.readuntil(b"\n\n")).removeprefix(b"data: ")) == message
        reply.close()
    await asyncio.wait_for(source.ended.wait(), 1)


async def test_a_stream_ends_with_its_session(
    house: House, visitor: Visitor, source: Source, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE_SECONDS", 0.05)
    async with visitor.session.get(url) as reply:
        assert await reply.content.readuntil(b"\n\n") == b": still here\n\n"
        await house.context.database.execute("UPDATE admin_sessions SET expires_at = 1")
        await asyncio.wait_for(reply.read(), 1)
    await asyncio.wait_for(source.ended.wait(), 1)


async def test_a_stream_makes_no_session_last_longer(
    house: House, visitor: Visitor, source: Source, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE_SECONDS", 0.05)
    async with visitor.session.get(url) as reply:
        await house.context.database.execute("UPDATE admin_sessions SET last_seen_at = last_seen_at - 600000")
        before = await house.context.database.fetch_all("SELECT last_seen_at FROM admin_sessions")
        for _ in range(3):
            await reply.content.readuntil(b"\n\n")
        assert await house.context.database.fetch_all("SELECT last_seen_at FROM admin_sessions") == before
        reply.close()


async def test_a_stream_outlasts_a_database_that_is_away(
    house: House, visitor: Visitor, source: Source, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE_SECONDS", 0.05)
    asked = asyncio.Event()

    async def away(id: str) -> None:
        asked.set()
        raise DatabaseUnavailable

    async with visitor.session.get(url) as reply:
        with monkeypatch.context() as patch:
            patch.setattr(house.context.sessions, "find", away)
            await asyncio.wait_for(asked.wait(), 1)
        source.queue.put_nowait({"goes": "on"})
        await asyncio.wait_for(reply.content.readuntil(b'data: {"goes":"on"}\n\n'), 1)
        await house.context.database.execute("UPDATE admin_sessions SET expires_at = 1")
        await asyncio.wait_for(reply.read(), 1)


async def test_a_stream_ends_when_the_process_stops(house: House, visitor: Visitor, source: Source, url: str) -> None:
    async with visitor.session.get(url) as reply:
        house.context.stopping = True
        await asyncio.wait_for(reply.read(), 1)


async def test_a_page_that_takes_nothing_any_more_is_let_go(
    visitor: Visitor, source: Source, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PATIENCE_SECONDS", 0.05, raising=False)
    async with visitor.session.get(url) as reply:
        assert reply.connection and reply.connection.transport
        reply.connection.transport.pause_reading()
        for _ in range(20):
            source.queue.put_nowait({"part": "x" * 1_000_000})
        await asyncio.wait_for(source.ended.wait(), 1)
        reply.close()


async def test_a_stream_is_for_those_who_are_logged_in(stranger: Visitor, url: str) -> None:
    async with stranger.session.get(url, allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (303, "/admin/login?next=/admin/stream")


async def test_what_many_ask_for_is_made_once_until_it_is_old() -> None:
    made: list[str] = []

    async def make(key: str) -> int:
        made.append(key)
        number = len(made)
        await asyncio.sleep(0)
        return number

    shared = live.Shared(make, 60)
    assert await asyncio.gather(*(shared.get("a") for _ in range(3)), shared.get("b")) == [1, 1, 1, 2]
    assert made == ["a", "b"]
    old = live.Shared(make, 0)
    assert [await old.get("a") for _ in range(2)] == [3, 4]


async def test_what_takes_longer_to_make_than_it_is_shown_is_made_once_for_all_who_wait() -> None:
    made: list[str] = []

    async def make(key: str) -> int:
        made.append(key)
        await asyncio.sleep(0.05)
        return len(made)

    shared = live.Shared(make, 0.03)
    assert await asyncio.gather(*(shared.get("a") for _ in range(3))) == [1, 1, 1]


async def test_a_making_that_fails_is_tried_again_by_the_next_who_asks() -> None:
    results = [ValueError(), 1]

    async def make(key: str) -> int:
        if isinstance(result := results.pop(0), Exception):
            raise result
        return result

    shared = live.Shared(make, 60)
    with pytest.raises(ValueError):
        await shared.get("a")
    assert await shared.get("a") == 1


async def test_only_parts_that_changed_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TICK_SECONDS", 0)
    same = {"a": "1", "b": "2"}
    shown = iter([same, same, {"a": "1", "b": "3"}, {"a": "1", "b": "3"}])

    async def latest() -> live.Parts:
        return next(shown)

    messages = live.parts(latest)
    assert [await anext(messages) for _ in range(4)] == [same, {}, {"b": "3"}, {}]
    await messages.aclose()
