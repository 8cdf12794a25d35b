"""A provider's bad day is nobody's outage: calls go on at the next one while none has begun to work on them."""

import asyncio
import logging
import pathlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from stage.asking import STREAM, ask, call, code_of, event_of, until
from stage.cached import STALE
from stage.calls import stream_without_end, streaming
from stage.house import TESTER, House, open_house, settings_for
from stage.postgres import free_port
from stage.profiles import shipped
from stage.provider import END, Exchange, ScriptedProvider, answer, chunk, scripted_provider
from stage.raw import Answer, connected
from stage.routes import at, clock_of, pooled, project_with, token_with
from stage.scripts import black_hole, holds, in_turn, resets, sends

from llm_proxy.acts import providers

ERROR = b'{"error": {}}'
SPEECH = "/v1/audio/transcriptions"


@pytest.fixture
async def sick() -> AsyncIterator[ScriptedProvider]:
    """A provider that is asked before the good one, and is overloaded until a test says otherwise."""
    async with scripted_provider() as running:
        running.script = says(b"503 Away")
        yield running


def says(status: bytes, extra: bytes = b"") -> Any:
    return sends(answer(ERROR, status=status, extra=extra))


async def both(house: House, sick: ScriptedProvider | str, good: ScriptedProvider, **fields: Any) -> str:
    """A token whose calls go to the first provider, and to the second only when nothing else is left."""
    return await token_with(house, at(sick if isinstance(sick, str) else sick.url), at(good.url, weight=0), **fields)


async def said(house: House, token: str, *headers: bytes, **more: Any) -> Answer:
    reply = await ask(house.url, call(token, *headers, **more), more.get("method", "POST"))
    assert reply is not None
    return reply


async def statuses(house: House, token: str, times: int) -> set[int]:
    return {(await said(house, token)).status for _ in range(times)}


@pytest.mark.parametrize(
    ("status", "asked"), [(b"429 Slow", 1), (b"401 Key", 1), (b"502 Bad", 5), (b"503 Away", 5), (b"529 Full", 5)]
)
async def test_a_sick_provider_costs_no_call_is_left_alone_probed_and_taken_back(
    house: House, provider: ScriptedProvider, sick: ScriptedProvider, status: bytes, asked: int
) -> None:
    clock, sick.script = clock_of(house), says(status)
    token = await both(house, sick, provider)
    assert await statuses(house, token, 10) == {200}
    assert (len(sick.exchanges), len(provider.exchanges)) == (asked, 10), "it is left alone"
    failed = [one for event in house.events for one in event.failed_attempts]
    assert [one["status"] for one in failed] == [int(status[:3])] * asked
    clock.now += 15
    assert await statuses(house, token, 3) == {200}
    assert len(sick.exchanges) == asked + 1, "one call probes it"
    clock.now += 30
    sick.script = sends(answer(b"{}"))
    assert await statuses(house, token, 3) == {200}
    assert len(sick.exchanges) == asked + 4, "it is taken back"


async def test_a_provider_that_cannot_be_connected_to_costs_no_call(tmp_path: pathlib.Path, provider: ScriptedProvider) -> None:
    profiles = shipped(timeouts={"connect": 0.5})
    async with open_house(settings_for(tmp_path), profiles=profiles) as house:
        with black_hole() as hole:
            for url in (hole, f"http://127.0.0.1:{free_port()}"):
                token = await both(house, url, provider)
                before = len(house.events)
                replies = await asyncio.gather(*(said(house, token) for _ in range(40)))
                assert Counter(reply.status for reply in replies) == {200: 40}
                assert await statuses(house, token, 5) == {200}
                events = house.events[before:]
                assert [event.attempts for event in events[-5:]] == [1] * 5, "its breaker is open"
                codes = {one["code"] for event in events for one in event.failed_attempts}
                assert codes == {"upstream_timeout" if url == hole else "upstream_unavailable"}
    assert len(provider.exchanges) == 90


async def test_403_fails_over_and_says_nothing_of_keys(house: House, provider: ScriptedProvider, sick: ScriptedProvider) -> None:
    sick.script = says(b"403 Model")
    token = await both(house, sick, provider)
    assert await statuses(house, token, 10) == {200}
    assert len(sick.exchanges) == 10
    assert {breaker.state for _, breaker in house.context.breakers} == {"closed"}


async def test_a_refused_key_is_told_loudly_and_its_neighbour_serves(
    house: House, provider: ScriptedProvider, sick: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    sick.script = says(b"401 Key")
    token = await both(house, sick, provider)
    assert await statuses(house, token, 3) == {200}
    [failed] = house.events[0].failed_attempts
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert failed["provider"] in line.getMessage() and "bad_key" in line.getMessage()
    await house.context.audit.close()
    [row] = await house.context.database.fetch_all("SELECT * FROM audit_events WHERE action = 'provider.key_refused'", {})
    assert failed["provider"] in str(dict(row)) and row["outcome"] == "failure"
    states = dict(house.context.breakers)
    assert states[failed["provider"]].state == "bad_key"
    assert sum(breaker.state == "closed" for breaker in states.values()) == 1


@pytest.mark.parametrize("status", [b"429 Slow", b"401 Key"])
async def test_what_only_refuses_is_asked_where_no_other_is_left(house: House, sick: ScriptedProvider, status: bytes) -> None:
    sick.script = says(status, b"Retry-After: 60\r\n")
    token = await token_with(house, at(sick.url))
    assert await statuses(house, token, 3) == {int(status[:3])}
    assert len(sick.exchanges) == 3, "its own answer says more than ours would"


async def test_a_call_that_may_have_been_begun_is_not_sent_twice(
    house: House, provider: ScriptedProvider, sick: ScriptedProvider
) -> None:
    sick.script = resets()
    token = await both(house, sick, provider)
    reply = await said(house, token)
    assert (reply.status, code_of(reply), len(provider.exchanges)) == (502, "upstream_unavailable", 0)
    sick.script = says(b"500 Mistake")
    assert ((await said(house, token)).status, len(provider.exchanges)) == (500, 0)
    sick.script = says(b"500 Mistake", b"x-should-retry: true\r\n")
    assert ((await said(house, token)).status, len(provider.exchanges)) == (200, 1)
    sick.script = resets()
    assert (await said(house, token, b"Idempotency-Key: k")).status == 200, "its client allows that it is sent twice"
    assert (len(sick.exchanges), len(provider.exchanges)) == (4, 2)


async def test_a_body_that_is_streamed_never_fails_over(house: House, provider: ScriptedProvider, sick: ScriptedProvider) -> None:
    token = await both(house, sick, provider)
    for size, expected in ((1024 * 1024 + 1, 503), (1024, 200)):
        reply = await said(house, token, b"Content-Type: audio/wav", path=SPEECH, body=bytes(size))
        assert reply.status == expected
    assert [len(one.body) for one in provider.exchanges] == [1024]


async def test_with_all_down_the_error_is_right_and_what_is_known_goes_on(
    house: House, provider: ScriptedProvider, sick: ScriptedProvider
) -> None:
    clock_of(house)
    await pooled(house, at(sick.url, model_mapping={"gpt-4o": "theirs"}), at(provider.url, 0, model_mapping={"gpt-4o": "theirs"}))
    token = await house.token(await project_with(house))
    asked = {"path": "/v1/embeddings", "body": b'{"model": "gpt-4o", "input": "a"}'}
    sick.script = sends(answer(b"kept", extra=STALE))
    opted = (b"Cache-Control: public, max-age=600, stale-if-error=600",)
    stored = await said(house, token, *opted, **asked)
    assert stored.header(b"X-PROXY-CACHE") == b"stored", stored.head
    sick.script = provider.script = says(b"503 Away", b"Retry-After: 7\r\n")
    reply = await said(house, token)
    assert (reply.status, reply.body, reply.header(b"Retry-After")) == (503, ERROR, b"7"), "the last one's own answer"
    for _ in range(4):
        await said(house, token)
    before = len(sick.exchanges) + len(provider.exchanges)
    reply = await said(house, token)
    assert (reply.status, code_of(reply), reply.header(b"Retry-After")) == (503, "upstream_unavailable", b"10")
    assert len(sick.exchanges) + len(provider.exchanges) == before
    assert ((await said(house, token, *opted, **asked)).body) == b"kept"
    assert b"gpt-4o" in (await said(house, token, path="/v1/models", method="GET", body=b"")).body
    assert house.events[-3].outcome == "upstream_failed"


async def test_retries_in_flight_stay_in_their_budget(house: House, provider: ScriptedProvider, sick: ScriptedProvider) -> None:
    retries, refusing = house.context.retries, f"http://127.0.0.1:{free_port()}"
    answers, refuses = await both(house, sick, provider), await both(house, refusing, provider)
    release = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await release.wait()
        await exchange.send(answer(b"{}"))

    sick.script, provider.script = says(b"403 No"), waits
    calls = [asyncio.ensure_future(said(house, answers)) for _ in range(120)]
    await until(lambda: len(provider.exchanges) == 100 and sum(one.done() for one in calls) == 20)
    assert retries.retries == 100
    calls.append(asyncio.ensure_future(said(house, refuses)))
    await until(lambda: len(provider.exchanges) == 101)
    release.set()
    found = Counter(reply.status for reply in await asyncio.gather(*calls))
    assert (found, retries.retries) == ({200: 101, 403: 20}, 0), "what was not sent costs no place"


async def test_a_client_that_leaves_gives_slot_and_budget_back(
    house: House, provider: ScriptedProvider, sick: ScriptedProvider
) -> None:
    clock = clock_of(house)
    token, alone = await both(house, sick, provider), await token_with(house, at(sick.url))
    provider.script = holds()
    async with connected(house.url) as connection:
        await connection.send(call(token))
        await until(lambda: provider.exchanges)
        assert house.context.retries.retries == 1
    await until(lambda: house.context.retries.retries == 0)
    assert await statuses(house, alone, 5) == {503}
    breaker = dict(house.context.breakers)[house.events[-1].provider or ""]
    clock.now += 10
    sick.script = holds()
    async with connected(house.url) as connection:
        asked = len(sick.exchanges)
        await connection.send(call(alone))
        await until(lambda: len(sick.exchanges) > asked)
        assert not breaker.admits(), "it is the probe"
    await until(breaker.admits)
    assert breaker.state == "half-open"


async def test_clients_that_leave_in_the_middle_of_their_bodies_are_no_failures_of_the_provider(
    house: House, provider: ScriptedProvider
) -> None:
    token = await token_with(house, at(provider.url))
    provider.reads_bodies, provider.script = False, holds()
    begun = call(token, b"Content-Type: audio/wav", b"Transfer-Encoding: chunked", path=SPEECH, body=b"")
    for number in range(6):
        async with connected(house.url) as connection:
            await connection.send(begun + chunk(bytes(1024 * 1024 + 1)))
            await until(lambda number=number: len(provider.exchanges) > number)
        await event_of(house, number)
    assert [breaker.state for _, breaker in house.context.breakers] == ["closed"]


async def test_no_more_providers_are_tried_than_the_operator_says(tmp_path: pathlib.Path, sick: ScriptedProvider) -> None:
    for most in ("1", "3"):
        async with open_house(settings_for(tmp_path / most, UPSTREAM_MAX_ATTEMPTS=most)) as house:
            token = await token_with(house, *[at(sick.url)] * 5)
            sick.exchanges.clear()
            reply = await said(house, token)
            assert (reply.status, len(sick.exchanges), house.events[0].attempts) == (503, int(most), int(most))


async def test_one_deadline_bounds_all_attempts_and_blames_none_but_the_first(
    tmp_path: pathlib.Path, provider: ScriptedProvider, sick: ScriptedProvider
) -> None:
    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(0.4)
        await exchange.send(answer(ERROR, status=b"529 Full"))

    profiles = shipped(timeouts={"first_byte": 0.5})
    async with open_house(settings_for(tmp_path), profiles=profiles) as house:
        sick.script, provider.script = late, holds()
        token = await both(house, sick, provider)
        began = time.monotonic()
        reply = await said(house, token)
        assert (reply.status, code_of(reply)) == (504, "upstream_timeout")
        assert 0.49 < time.monotonic() - began < 0.8
        event = house.events[0]
        assert dict(house.context.breakers)[event.provider or ""]._streak == 0
        assert (event.attempts, event.first_byte, len(event.failed_attempts)) == (2, None, 1)
        sick.script = holds()
        assert (await said(house, token, b"Idempotency-Key: k")).status == 504
        assert house.events[1].attempts == 1, "no time is left for another"


async def test_event_and_server_timing_list_attempts(house: House, provider: ScriptedProvider, sick: ScriptedProvider) -> None:
    sick.script = says(b"503 Away", b"X-Request-ID: theirs\r\n")
    ids = await pooled(house, at(sick.url), at(provider.url, 0))
    reply = await said(house, await house.token(await project_with(house)))
    event = await event_of(house)
    [failed] = event.failed_attempts
    assert (failed["provider"], failed["status"], failed["code"]) == (ids[0], 503, None)
    assert (event.provider, event.attempts, event.upstream_request_id, event.status) == (ids[1], 2, None, 200)
    timing = dict(re.findall(r"(\w+);dur=([0-9.]+)", (reply.header(b"Server-Timing") or b"").decode()))
    assert float(timing["failed"]) == pytest.approx(failed["duration"] * 1000, abs=0.01)
    assert {"auth", "limit", "cache", "connect", "ttfb", "failed"} == timing.keys()


async def test_what_lives_with_one_provider_is_asked_there_alone(
    house: House, provider: ScriptedProvider, sick: ScriptedProvider
) -> None:
    token = await both(house, sick, provider)
    for _ in range(5):
        assert (await said(house, token, path="/v1/files/file-1", method="GET", body=b"")).body == ERROR
    reply = await said(house, token, path="/v1/files/file-1", method="GET", body=b"")
    assert (reply.status, code_of(reply), reply.header(b"Retry-After")) == (503, "upstream_unavailable", b"10")
    assert (len(sick.exchanges), len(provider.exchanges)) == (5, 0)
    assert (await said(house, token)).status == 200


async def test_what_is_fetched_behind_a_call_goes_where_its_object_lives(
    house: House, provider: ScriptedProvider, sick: ScriptedProvider
) -> None:
    token = await token_with(house, at(sick.url, 2), at(provider.url))
    old = answer(b"old", extra=STALE.replace(b"60", b"60, stale-while-revalidate=600"))
    sick.script = in_turn(sends(old), says(b"503 Away"))
    for number in range(8):
        assert (await said(house, token, path="/v1/files/file-1", method="GET", body=b"")).body == b"old"
        await until(lambda number=number: len(sick.exchanges) == min(number + 1, 6))
        await until(lambda: not any(task.get_name().startswith("refresh") for task in asyncio.all_tasks()))
    assert len(provider.exchanges) == 0, "the sixth failure opened the breaker, so the rest asked nobody"


async def test_calls_are_spread_by_weight(house: House) -> None:
    async with AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(scripted_provider()) for _ in range(4)]
        await pooled(house, *(at(one.url, weight) for one, weight in zip(fleet, (5, 3, 1, 0), strict=True)))
        token = await house.token(await project_with(house))
        async with connected(house.url) as connection:
            for _ in range(300):
                await connection.send(call(token))
                assert (await connection.answer()) is not None
        counts = [len(one.exchanges) for one in fleet]
        # Five standard deviations.
        assert 123 < counts[0] < 210 and 59 < counts[1] < 141 and 6 < counts[2] < 61 and counts[3] == 0, counts
        token = await token_with(house, at(fleet[0].url, is_enabled=False), at(fleet[3].url, weight=0))
        assert await statuses(house, token, 2) == {200}


async def test_a_projects_own_providers_go_before_the_pool_and_disabled_ones_serve_nobody(
    house: House, provider: ScriptedProvider, sick: ScriptedProvider
) -> None:
    await pooled(house, at(provider.url), at(sick.url, is_enabled=False))
    own = await token_with(house, at(sick.url))
    assert await statuses(house, own, 3) == {503}, "the pool stands in for no project that has a key"
    assert (len(sick.exchanges), len(provider.exchanges)) == (3, 0)
    assert await statuses(house, await house.token(await project_with(house)), 5) == {200}
    disabled = await token_with(house, at(sick.url, is_enabled=False))
    assert code_of(await said(house, disabled)) == "model_not_found"
    assert (len(sick.exchanges), len(provider.exchanges)) == (3, 5)


async def test_a_stream_goes_on_while_its_provider_is_deleted(house: House, provider: ScriptedProvider) -> None:
    ids = await pooled(house, at(provider.url))
    token = await house.token(await project_with(house))
    provider.script = stream_without_end
    async with streaming(house, token) as connection:
        await providers.delete(house.context, TESTER, None, ids[0])
        assert code_of(await said(house, token, body=STREAM)) == "model_not_found"
        last = chunk(b"data: [DONE]\n\n")
        await provider.exchanges[0].send(last + END)
        assert await connection.reader.readuntil(END) == last + END
    assert (await event_of(house, 1)).outcome == "completed"
