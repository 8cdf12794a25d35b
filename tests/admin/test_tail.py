"""Open pages hear of calls as they run and end, each row made once, and no more rows than people can read."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from stage.asking import ask, call, event_of
from stage.calls import stream_without_end, streaming
from stage.house import House, open_house, settings_for
from stage.provider import ScriptedProvider, answer
from stage.scripts import sends
from stage.visitor import Visitor

from llm_proxy.admin import tail as module
from llm_proxy.admin.tail import MOST_ROWS, Tail
from llm_proxy.context import Context
from llm_proxy.events import Event
from llm_proxy.events.recent import KEPT, Filter

OK = sends(answer(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'))
ALL = Filter()


class Live:
    """The stream of an open page of requests."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self.reply = reply

    async def message(self, wanted: Callable[[Any], object]) -> Any:
        """The next message that is wanted."""
        async with asyncio.timeout(5):
            while True:
                line = await self.reply.content.readline()
                if line.startswith(b"data: ") and wanted(found := json.loads(line[6:])):
                    return found

    async def ended(self) -> list[str]:
        """The ids of the calls that have ended next."""
        return [row["id"] for row in (await self.message(lambda message: "ended" in message))["ended"]]


@asynccontextmanager
async def following(visitor: Visitor, **query: str) -> AsyncIterator[Live]:
    """A page that is open and live."""
    async with visitor.session.get(f"{visitor.url}/admin/requests-live", params=query) as reply:
        assert reply.content_type == "text/event-stream"
        live = Live(reply)
        await live.message(lambda message: "running" in message)
        yield live
        reply.close()


async def test_a_call_is_told_as_soon_as_it_has_ended(house: House, visitor: Visitor, provider: ScriptedProvider) -> None:
    token, provider.script, took = await house.token_for(provider.url), OK, []
    async with following(visitor) as live:
        for number in range(5):
            await ask(house.url, call(token))
            ended = time.monotonic()
            message = await live.message(lambda message: "ended" in message)
            took.append(time.monotonic() - ended)
            [row], event = message["ended"], await event_of(house, number)
            assert (row["id"], message["newest"], row["result"], row["tokens"]) == (event.id, event.id, "200 completed", "3")
    assert max(took) < 1, took


async def test_each_page_is_told_of_what_its_filters_want(house: House, visitor: Visitor, provider: ScriptedProvider) -> None:
    one, two = await house.token_for(provider.url), await house.token_for(provider.url)
    provider.script = OK
    await ask(house.url, call(two))
    first = await event_of(house)
    assert first.project_id and first.token_id
    async with (
        following(visitor, project_id=first.project_id) as project,
        following(visitor, token_id=first.token_id) as token,
        following(visitor, status="4xx", after=first.id) as refused,
        following(visitor, after=first.id) as everything,
    ):
        for credential in (one, two, "sk-lp-unknown"):
            await ask(house.url, call(credential))
        ids = [(await event_of(house, number)).id for number in range(4)]
        assert await refused.ended() == [ids[3]]
        told = list[str]()
        while len(told) < 3:
            told += await everything.ended()
        assert told == ids[1:]
        # They follow from the beginning: what ended before their page was loaded is for that page to know.
        assert (await project.ended() + await token.ended())[:1] == [ids[2]]


async def test_a_stream_is_told_while_it_runs(house: House, visitor: Visitor, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url, name="web")
    provider.script = stream_without_end
    async with following(visitor) as live, following(visitor, model="another") as other:
        async with streaming(house, token):
            message = await live.message(lambda message: message.get("running", {}).get("count"))
            [row], [running] = message["running"]["rows"], house.context.running.longest()
            assert (row["id"], row["token"], row["model"], row["how"]) == (running.event.id, "web", "gpt-4o", "stream")
            assert row["provider"].startswith("openai …") and row["sent"] == "50\u202fB"
            assert row["revoke"] == f"/admin/tokens/{running.token_id}/revoke"
            later = await live.message(lambda message: "running" in message)
            assert later["running"]["rows"][0]["elapsed"] != row["elapsed"]
        assert await live.ended() == [running.event.id]
        message = await live.message(lambda message: "running" in message)
        assert message["running"] == {"rows": [], "count": 0}
        house.context.stopping = True
        assert b'"rows":[{' not in await other.reply.read()


def publish(context: Context, count: int) -> None:
    """So many events, from number 1."""
    for number in range(1, count + 1):
        context.bus.publish(Event(f"r{number}", None, None, None, "GET", "/", id=f"e{number}"))


async def first_message(tail: Tail, after: str, wanted: Filter = ALL, number: int = 0) -> Any:
    """What somebody is told at first, as the page gets it."""
    async with aclosing(tail.follow(wanted, after, number)) as messages:
        return orjson.loads(orjson.dumps(await anext(messages)))


@pytest.mark.parametrize(
    ("buffer", "count", "after", "rows", "skipped", "missed"),
    [
        (1000, 4, "e4", 0, 0, 0),
        (1000, 4, "e2", 2, 0, 0),
        (1000, 4, "", 4, 0, 0),
        (1000, 4, "of a process before", 4, 0, 0),
        (1000, 100, "", MOST_ROWS, 50, 0),
        (60, 100, "e10", MOST_ROWS, 10, 30),
        (1000, KEPT + 7, "", MOST_ROWS, KEPT - MOST_ROWS, 7),
    ],
)
async def test_the_newest_are_told_and_the_others_counted(
    tmp_path: Path, buffer: int, count: int, after: str, rows: int, skipped: int, missed: int
) -> None:
    async with open_house(settings_for(tmp_path, OBSERVABILITY_BUFFER_SIZE=str(buffer))) as house:
        publish(house.context, count)
        message = await first_message(Tail(house.context), after)
        assert [row["id"] for row in message.get("ended", [])] == [f"e{number}" for number in range(count - rows + 1, count + 1)]
        if rows:
            assert (message["skipped"], message["missed"], message["newest"]) == (skipped, missed, f"e{count}")


@pytest.mark.parametrize(
    ("number", "missed"),
    [pytest.param(100, 7, id="not what the page had before"), pytest.param(500, 107, id="all, of a process before")],
)
async def test_only_what_a_page_has_not_seen_counts_as_missed(house: House, number: int, missed: int) -> None:
    publish(house.context, KEPT + 107)
    message = await first_message(Tail(house.context), "gone", number=number)
    assert (message["skipped"], message["missed"], message["number"]) == (KEPT - MOST_ROWS, missed, KEPT + 107)


async def test_a_page_tells_where_it_begins(house: House, visitor: Visitor) -> None:
    publish(house.context, 3)
    assert 'data-newest="e3" data-number="3"' in (await visitor.get("/admin/requests")).source
    for number in ("2", "no number", "9" * 5000):
        async with following(visitor, after="e3", number=number):
            pass


async def test_a_row_is_made_once_for_all_who_follow(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made, show = list[str](), module.ended_row

    def counted(context: Context, event: Event) -> dict[str, Any]:
        made.append(event.id)
        return show(context, event)

    monkeypatch.setattr(module, "ended_row", counted)
    # So long that all of this happens within one.
    monkeypatch.setattr(module, "TICK_SECONDS", 1e6)
    tail = Tail(house.context)
    publish(house.context, 3)
    told = [await first_message(tail, "", wanted) for wanted in (ALL, ALL, Filter(text="e"), Filter(model="x"))]
    assert made == ["e1", "e2", "e3"]
    assert [len(message.get("ended", [])) for message in told] == [3, 3, 3, 0]


async def test_who_follows_later_in_the_same_moment_misses_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # So long that all of this happens within one.
    monkeypatch.setattr(module, "TICK_SECONDS", 1e6)
    tail = Tail(house.context)
    publish(house.context, 1)
    for newest in ("e1", "another"):
        assert (await first_message(tail, ""))["newest"] == newest
        house.context.bus.publish(Event("r", None, None, None, "GET", "/", id="another"))
