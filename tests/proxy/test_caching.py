"""What a call finds in the cache, what it leaves there, through the front door."""

import asyncio
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from stage.asking import ASKING, BODY, CHAT, MESSAGES, STREAM, ask, call, code_of, event_of, until
from stage.cached import FRESH, MODELS, STALE, Tenant, key_of, numbered, said_of, tenant_of
from stage.house import House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import END, STREAM_HEAD, Exchange, Script, ScriptedProvider, answer, chunk, scripted_provider
from stage.raw import Answer, connected
from stage.scripts import holds, in_turn, resets, sends

from llm_proxy.changes import EVERYTHING
from llm_proxy.errors import ApiError
from llm_proxy.running import RunningCall

PUBLIC = b"Cache-Control: public"
EVENTS = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"delta":{"content":"h"}}]}\n\ndata: [DONE]\n\n'
TAGGED = b'Cache-Control: max-age=60\r\nAge: 100\r\nETag: "one"\r\n'


@pytest.fixture
async def tenant(house: House, provider: ScriptedProvider) -> Tenant:
    """A client of one project."""
    return await tenant_of(house, provider)


def status_of(reply: Answer) -> str:
    """Our member of Cache-Status, without its key."""
    return (reply.header(b"Cache-Status") or b"").decode().partition("; key=")[0]


async def test_a_fresh_answer_is_stored_then_answers_without_the_provider(tenant: Tenant, provider: ScriptedProvider) -> None:
    provider.script = numbered()
    first, second = await tenant.send(path=f"{MODELS}?b=2&a=1"), await tenant.send(path=f"{MODELS}?a=1&b=2")
    assert (said_of(first), status_of(first)) == ("stored", "llm-proxy; fwd=uri-miss; stored")
    assert said_of(second) == "hit" and status_of(second) in ("llm-proxy; hit; ttl=59", "llm-proxy; hit; ttl=60")
    assert len(key_of(first)) == 64 and key_of(first) == key_of(second)
    assert (first.body, second.body, tenant.asked) == (b'{"n": 1}', b'{"n": 1}', 1)
    assert (await event_of(tenant.house)).cache == "stored" and (await event_of(tenant.house, 1)).cache == "hit"
    assert await tenant.how(path=f"{MODELS}?a=1&b=3") == "stored"


async def test_a_head_is_answered_from_a_get(provider: ScriptedProvider, tmp_path: Path) -> None:
    provider.script = numbered()
    async with open_house(settings_for(tmp_path), profiles=shipped(allowed_methods=("GET", "HEAD"))) as house:
        tenant = await tenant_of(house, provider)
        await tenant.send()
        reply = await tenant.send(method="HEAD")
        assert (said_of(reply), reply.header(b"Content-Length"), reply.body, tenant.asked) == ("hit", b"8", b"", 1)


async def test_a_stale_answer_that_a_head_confirms_is_fresh_again(provider: ScriptedProvider, tmp_path: Path) -> None:
    head = b'HTTP/1.1 200 OK\r\nCache-Control: max-age=90\r\nETag: "one"\r\nContent-Length: %d\r\n\r\n'
    provider.script = in_turn(sends(answer(b"body", extra=TAGGED)), sends(head % 4))
    async with open_house(settings_for(tmp_path), profiles=shipped(allowed_methods=("GET", "HEAD"))) as house:
        tenant = await tenant_of(house, provider)
        await tenant.send()
        reply = await tenant.send(method="HEAD")
        assert (reply.status, said_of(reply), tenant.asked) == (200, "miss", 2)
        again = await tenant.send()
        assert (said_of(again), again.body, tenant.asked) == ("hit", b"body", 2)


async def test_conditions_and_ranges_of_clients_are_answered_from_what_is_stored(
    tenant: Tenant, provider: ScriptedProvider
) -> None:
    provider.script = numbered(FRESH + b'ETag: "one"\r\n')
    await tenant.send()
    same = await tenant.send(b'If-None-Match: "zero", W/"one"')
    assert (same.status, same.body, same.header(b"ETag"), same.header(b"Content-Length")) == (304, b"", b'"one"', None)
    part = await tenant.send(b"Range: bytes=1-3")
    assert (part.status, part.body, part.header(b"Content-Range")) == (206, b'"n"', b"bytes 1-3/8")
    assert (await tenant.send(b'If-None-Match: "two"')).status == 200
    assert (await tenant.send(b"Range: bytes=9-")).status == 416
    assert tenant.asked == 1


async def test_variants_are_chosen_by_what_the_answers_vary_says(tenant: Tenant, provider: ScriptedProvider) -> None:
    provider.script = numbered(FRESH + b"Vary: X-Color\r\n")
    red, blue = await tenant.send(b"X-Color: red"), await tenant.send(b"X-Color: blue")
    assert "fwd=vary-miss" in status_of(blue)
    for reply, color in ((red, b"red"), (blue, b"blue")):
        again = await tenant.send(b"X-Color: " + color, b"X-Shape: round")
        assert (again.body, said_of(again)) == (reply.body, "hit")
    assert tenant.asked == 2
    provider.script = numbered(FRESH + b"Vary: *\r\n")
    assert [await tenant.how(path="/v1/models/x") for _ in range(2)] == ["miss", "miss"]


async def test_a_stale_answer_that_its_provider_confirms_is_fresh_again(tenant: Tenant, provider: ScriptedProvider) -> None:
    confirms = sends(b'HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=90\r\nETag: "one"\r\nX-New: yes\r\n\r\n')
    provider.script = in_turn(sends(answer(b"body", extra=TAGGED)), confirms)
    await tenant.send()
    again = await tenant.send(b'If-None-Match: "mine"', b"Accept: a/b")
    assert (again.status, again.body, said_of(again), again.header(b"X-New")) == (200, b"body", "conditional-hit", b"yes")
    assert status_of(again).startswith("llm-proxy; fwd=stale; fwd-status=304; ttl=")
    asked = provider.exchanges[1]
    assert (asked.header(b"If-None-Match"), asked.header(b"Accept")) == (b'"one"', b"a/b")
    assert again.header(b"X-UPSTREAM-REQUEST-START") is None
    assert (await event_of(tenant.house, 1)).cache == "conditional-hit"
    held = await tenant.send(b'If-None-Match: "one"')
    assert (held.status, said_of(held), tenant.asked) == (304, "hit", 2)
    provider.script = numbered()
    changed = await tenant.send(b"Cache-Control: no-cache")
    assert (changed.body, said_of(changed), await tenant.how()) == (b'{"n": 1}', "stored", "hit")


async def test_a_stale_answer_whose_successor_is_not_stored_is_forgotten(tenant: Tenant, provider: ScriptedProvider) -> None:
    provider.script = numbered(STALE[:-2] + b'\r\nETag: "one"\r\n')
    await tenant.send()
    provider.script = numbered(b"Cache-Control: no-store\r\n")
    assert await tenant.how() == "miss"
    assert (await tenant.send(b"Cache-Control: only-if-cached, max-stale")).status == 504


async def test_a_stale_answer_stands_in_for_a_failing_provider(house: House) -> None:
    closes = b"Connection: close\r\n"
    extra = closes + STALE.replace(b"60", b"60, stale-if-error=600")
    fails = sends(answer(b'{"error": {"code": "theirs"}}', status=b"500 Oops", extra=closes), close=True)
    async with scripted_provider() as provider:
        tenant = await tenant_of(house, provider, max_requests=4)
        provider.script = in_turn(sends(answer(b"body", extra=extra), close=True), fails)
        await tenant.send()
        reply = await tenant.send()
        assert (reply.status, reply.body, said_of(reply)) == (200, b"body", "hit")
        assert status_of(reply).startswith("llm-proxy; fwd=stale; fwd-status=500; ttl=-")
        assert code_of(await tenant.send(path="/v1/models/x")) == "theirs"
    for number in (3, 4):
        # No provider is reached now, so that the last request of the quota is never used up.
        reply = await tenant.send()
        assert (reply.status, reply.body, said_of(reply)) == (200, b"body", "hit")
        event = await event_of(house, number)
        assert (event.outcome, event.cache) == ("cached", "hit")
    assert code_of(await tenant.send(path="/v1/models/x")) == "upstream_unavailable"


@pytest.mark.parametrize(("method", "path", "body"), [("GET", MODELS, b""), ("POST", CHAT, BODY), ("POST", MESSAGES, BODY)])
async def test_only_if_cached_never_asks_the_provider(
    house: House, provider: ScriptedProvider, method: str, path: str, body: bytes
) -> None:
    provider_type = "anthropic" if path == MESSAGES else "openai"
    token = await house.token_for(provider.url, provider_type=provider_type, max_requests=1)
    asking = call(token, b"Cache-Control: public, only-if-cached", method=method, path=path, body=body)
    for _ in range(2):
        reply = await ask(house.url, asking, method)
        assert reply is not None and (reply.status, code_of(reply)) == (504, "only_if_cached")
        assert reply.header(b"x-should-retry") == b"false"
        assert (orjson.loads(reply.body).get("type") == "error") == (path == MESSAGES)
    assert not provider.exchanges


async def test_a_client_may_refuse_what_is_stored(tenant: Tenant, provider: ScriptedProvider) -> None:
    provider.script = numbered()
    assert await tenant.how(b"Cache-Control: no-store") == "bypass"
    assert await tenant.how() == "stored"
    assert await tenant.how(b"Cache-Control: no-store") == "bypass"
    assert await tenant.how(b"Cache-Control: no-cache") == "stored"
    assert await tenant.how(b"Pragma: no-cache") == "stored"
    newest = await tenant.send(b"Cache-Control: max-age=0")
    assert (said_of(newest), newest.body) == ("stored", b'{"n": 6}')
    assert (await tenant.send(b"Cache-Control: max-age=30")).body == newest.body
    assert await tenant.how(b"Cache-Control: min-fresh=3000") == "stored"


async def test_what_says_nothing_of_freshness_or_forbids_it_is_not_stored(tenant: Tenant, provider: ScriptedProvider) -> None:
    for number, extra in enumerate((b"", b"Cache-Control: no-store\r\n", b"CDN-Cache-Control: no-store\r\n" + FRESH)):
        provider.script = numbered(extra)
        assert [await tenant.how(path=f"{MODELS}/{number}") for _ in range(2)] == ["miss", "miss"], extra


async def test_redirects_and_errors_with_freshness_are_stored_without_cookies(tenant: Tenant, provider: ScriptedProvider) -> None:
    extra = FRESH + b"Set-Cookie: a=1\r\nX-Request-ID: theirs\r\nLocation: " + provider.url.encode() + b"/v1/models/new?x=1\r\n"
    for number, status in enumerate((b"302 Found", b"308 Permanent Redirect", b"404 Not Found", b"410 Gone")):
        provider.script = sends(answer(b"{}", status=status, extra=extra))
        first, second = [await tenant.send(path=f"{MODELS}/{number}") for _ in range(2)]
        assert (said_of(first), said_of(second)) == ("stored", "hit")
        assert first.status == second.status == int(status[:3])
        assert first.header(b"Location") == second.header(b"Location") == b"http://proxy/v1/models/new?x=1"
        assert b"set-cookie" not in second.head.lower() and b"theirs" not in second.head
        # The Location is written for whoever asks.
        elsewhere = await ask(tenant.house.url, call(tenant.token, method="GET", body=b"", path=f"{MODELS}/{number}", host="h"))
        assert elsewhere is not None and elsewhere.header(b"Location") == b"http://h/v1/models/new?x=1"


# POST


async def test_a_post_is_stored_only_for_a_client_that_asks_for_it(tenant: Tenant, provider: ScriptedProvider) -> None:
    provider.script = numbered(b"")
    post = {"method": "POST", "path": CHAT, "body": BODY}
    assert [await tenant.how(**post) for _ in range(2)] == ["bypass", "bypass"]
    assert [await tenant.how(PUBLIC, **post) for _ in range(2)] == ["stored", "hit"]
    assert await tenant.how(**post) == "bypass"
    other = orjson.dumps({**ASKING, "model": "gpt-4"})
    assert [await tenant.how(PUBLIC, **{**post, "body": other}) for _ in range(2)] == ["stored", "hit"]
    aged = await tenant.send(b"Cache-Control: public, max-age=7", **{**post, "body": BODY + b" "})
    assert said_of(aged) == "stored"
    again = await tenant.send(PUBLIC, **{**post, "body": BODY + b" "})
    assert status_of(again) in ("llm-proxy; hit; ttl=6", "llm-proxy; hit; ttl=7")
    # Not listed under cacheable_post.
    assert [await tenant.how(PUBLIC, method="POST", path="/v1/files", body=b"{}") for _ in range(2)] == ["bypass", "bypass"]
    provider.script = numbered(FRESH, b"500 Oops")
    assert [await tenant.how(PUBLIC, **{**post, "body": b"{}"}) for _ in range(2)] == ["miss", "miss"]


async def test_a_stream_is_captured_and_replayed_at_once(tenant: Tenant, provider: ScriptedProvider) -> None:
    pieces = [chunk(EVENTS[at : at + 7]) for at in range(0, len(EVENTS), 7)]
    provider.script = sends(STREAM_HEAD, *pieces, END)
    first = await tenant.send(PUBLIC, method="POST", path=CHAT, body=STREAM)
    again = await tenant.send(PUBLIC, method="POST", path=CHAT, body=STREAM)
    assert (said_of(first), first.body, first.header(b"Transfer-Encoding")) == ("stored", EVENTS, b"chunked")
    assert (said_of(again), again.body, again.header(b"Content-Length")) == ("hit", EVENTS, b"%d" % len(EVENTS))
    assert again.header(b"Content-Type") == b"text/event-stream" and tenant.asked == 1


UNFINISHED: dict[str, Script] = {
    "cut": sends(STREAM_HEAD, chunk(EVENTS), close=True),
    "reset": resets(STREAM_HEAD, chunk(EVENTS)),
    "without-done": sends(STREAM_HEAD, chunk(EVENTS.replace(b"data: [DONE]\n\n", b"")), END),
    "ends-with-its-connection": sends(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS, close=True),
    "json-cut": sends(answer(b'{"ok": true}')[:-3], close=True),
    "json-ends-with-its-connection": sends(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"a":', close=True),
    "too-large-by-length": sends(answer(b"x" * 2000)),
    "too-large-by-chunks": sends(STREAM_HEAD, chunk(b": " + b"x" * 2000 + b"\n\n" + EVENTS), END),
}


async def test_what_does_not_end_whole_or_is_too_large_is_never_stored(provider: ScriptedProvider, tmp_path: Path) -> None:
    async with open_house(settings_for(tmp_path, HTTP_CACHE_MAX_OBJECT_BYTES="1KiB")) as house:
        tenant = await tenant_of(house, provider)
        for number, (name, script) in enumerate(UNFINISHED.items()):
            body = orjson.dumps({**ASKING, "stream": True, "seed": number})
            asking = call(tenant.token, PUBLIC, body=body)
            provider.script = script
            await ask(house.url, asking)
            provider.script = numbered(b"")
            assert said_of(await tenant.send(PUBLIC, method="POST", path=CHAT, body=body)) == "stored", name
            assert house.events[-2].cache == "miss", name


async def test_an_answer_whose_client_leaves_is_not_stored(tenant: Tenant, provider: ScriptedProvider) -> None:
    begun = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(EVENTS[:20]))
        await begun.wait()
        await exchange.until_closed()

    provider.script = script
    async with connected(tenant.house.url) as connection:
        await connection.send(call(tenant.token, PUBLIC, body=STREAM))
        await connection.reader.readuntil(EVENTS[:20])
        connection.abort()
    begun.set()
    event = await event_of(tenant.house)
    assert (event.outcome, event.cache) == ("client_gone", "miss")
    provider.script = numbered(b"")
    assert await tenant.how(PUBLIC, method="POST", path=CHAT, body=STREAM) == "stored"


async def test_an_unsafe_call_makes_its_path_doubtful_if_it_succeeds(tenant: Tenant, provider: ScriptedProvider) -> None:
    path, other = "/v1/files/x", "/v1/files/y"
    provider.script = numbered()
    assert [await tenant.how(path=each) for each in (path, other, path, other)] == ["stored", "stored", "hit", "hit"]
    provider.script = sends(answer(b"{}", status=b"404 Not Found"))
    assert await tenant.how(method="DELETE", path=path) == "bypass"
    assert await tenant.how(path=path) == "hit"
    provider.script = sends(answer(b"{}", extra=f"Location: {provider.url}{other}\r\n".encode()))
    assert await tenant.how(method="DELETE", path=path) == "bypass"
    provider.script = numbered()
    assert [await tenant.how(path=each) for each in (path, other)] == ["stored", "stored"]
    provider.script = numbered(b"")
    await tenant.send(method="POST", path="/v1/files/x", body=b"{}")
    assert [await tenant.how(path=each) for each in (path, other)] == ["miss", "hit"]


async def test_a_cache_that_is_switched_off_has_no_part_in_anything(provider: ScriptedProvider, tmp_path: Path) -> None:
    async with open_house(settings_for(tmp_path, HTTP_CACHE_ENABLED="false")) as house:
        tenant = await tenant_of(house, provider)
        provider.script = numbered()
        replies = [await tenant.send() for _ in range(2)]
        replies += [await tenant.send(PUBLIC, method="POST", path=CHAT, body=BODY) for _ in range(2)]
        assert [said_of(reply) for reply in replies] == ["bypass"] * 4 and tenant.asked == 4
        assert status_of(replies[0]) == "llm-proxy; fwd=bypass" and key_of(replies[0]) == ""
        assert {event.cache for event in house.events} == {"bypass"}


async def test_a_call_with_a_body_that_is_no_part_of_its_key_passes_the_cache_by(
    tenant: Tenant, provider: ScriptedProvider
) -> None:
    provider.script = numbered(FRESH)
    large = b"w" * 1_100_000
    for method, path, body in (("GET", MODELS, large), ("POST", CHAT, large), ("GET", MODELS, b"{}")):
        for _ in range(2):
            assert await tenant.how(PUBLIC, b"Content-Type: audio/wav", method=method, path=path, body=body) == "bypass"
    assert await tenant.how() == "stored"


# Identical calls


async def together(tenant: Tenant, count: int, before: int = 0) -> list[asyncio.Task[Answer]]:
    """So many identical calls; all of them, and those before, wait for the provider or for one another."""
    running = tenant.house.context.running
    tasks = [asyncio.ensure_future(tenant.send()) for _ in range(count)]

    def waiting() -> list[RunningCall]:
        return [call for call in running.concerned_by(EVERYTHING) if call.deadline]  # type: ignore[attr-defined]

    await until(lambda: len(waiting()) == before + count)
    return tasks


def gated(gate: asyncio.Event, *data: bytes) -> Script:
    """Answers when the gate opens."""

    async def script(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(*data)

    return script


async def test_identical_calls_wait_for_the_first_and_are_hits(house: House, provider: ScriptedProvider) -> None:
    tenant, gate = await tenant_of(house, provider, max_requests=100), asyncio.Event()
    provider.script = gated(gate, answer(b"one", extra=FRESH))
    tasks = await together(tenant, 50)
    gate.set()
    replies = await asyncio.gather(*tasks)
    assert sorted(map(said_of, replies)) == ["hit"] * 49 + ["stored"] and tenant.asked == 1
    assert sum(status_of(reply).endswith("; collapsed") for reply in replies) == 49
    assert {reply.body for reply in replies} == {b"one"}


async def test_identical_calls_ask_once_whether_a_stale_answer_still_holds(tenant: Tenant, provider: ScriptedProvider) -> None:
    gate = asyncio.Event()
    confirms = b'HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nETag: "one"\r\n\r\n'
    provider.script = in_turn(sends(answer(b"one", extra=TAGGED)), gated(gate, confirms))
    await tenant.send()
    tasks = await together(tenant, 10)
    gate.set()
    replies = await asyncio.gather(*tasks)
    assert sorted(map(said_of, replies)) == ["conditional-hit"] + ["hit"] * 9
    assert {reply.body for reply in replies} == {b"one"} and tenant.asked == 2


ALONE: dict[str, Script] = {
    "not-storable": holds(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 9\r\n\r\nhalf"),
    "another-variant": sends(answer(b"other", extra=FRESH + b"Vary: X-N\r\n")),
    "fails": sends(b"HTTP/1.1 nonsense\r\n\r\n", close=True),
    "cut": sends(answer(b"whole", extra=FRESH)[:-2], close=True),
}


@pytest.mark.parametrize("how", ALONE)
async def test_calls_go_on_by_themselves_when_the_first_brings_them_nothing(
    tenant: Tenant, provider: ScriptedProvider, how: str
) -> None:
    gate = asyncio.Event()

    async def first(exchange: Exchange) -> None:
        await gate.wait()
        await ALONE[how](exchange)

    provider.script = in_turn(first, sends(answer(b"own", extra=b"Vary: X-N\r\n")))
    async with connected(tenant.house.url) as leader:
        await leader.send(call(tenant.token, b"X-N: 1", method="GET", path=MODELS, body=b""))
        await provider.next_exchange()
        tasks = await together(tenant, 3, before=1)
        gate.set()
        replies = await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert [(reply.body, said_of(reply)) for reply in replies] == [(b"own", "miss")] * 3
    assert tenant.asked == 4 and not any("collapsed" in status_of(reply) for reply in replies)


async def test_calls_go_on_when_the_client_of_the_first_leaves_and_one_that_leaves_is_gone(
    tenant: Tenant, provider: ScriptedProvider
) -> None:
    provider.script = in_turn(holds(), sends(answer(b"own", extra=FRESH)))
    asking = call(tenant.token, method="GET", path=MODELS, body=b"")
    async with connected(tenant.house.url) as leader, connected(tenant.house.url) as waiter:
        await leader.send(asking)
        await provider.next_exchange()
        await waiter.send(asking)
        [task] = await together(tenant, 1, before=2)
        waiter.abort()
        gone = await event_of(tenant.house)
        assert (gone.outcome, gone.attempts, gone.duration < 2) == ("client_gone", 0, True)
        leader.abort()
        reply = await asyncio.wait_for(task, 5)
    assert (reply.body, tenant.asked) == (b"own", 2)


async def test_a_call_does_not_wait_for_ever(tenant: Tenant, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_proxy.proxy.caching.PATIENCE", 0.1)
    provider.script = in_turn(holds(), sends(answer(b"own", extra=FRESH)))
    async with connected(tenant.house.url) as leader:
        await leader.send(call(tenant.token, method="GET", path=MODELS, body=b""))
        await provider.next_exchange()
        began = time.monotonic()
        assert (await tenant.send()).body == b"own"
        assert time.monotonic() - began >= 0.1


async def test_a_waiting_call_ends_with_its_permission(tenant: Tenant, provider: ScriptedProvider) -> None:
    provider.script = holds()
    async with connected(tenant.house.url) as leader:
        await leader.send(call(tenant.token, method="GET", path=MODELS, body=b""))
        await provider.next_exchange()
        tasks = await together(tenant, 2, before=1)
        await tenant.revoke()
        for reply in await asyncio.wait_for(asyncio.gather(*tasks), 5):
            assert (reply.status, code_of(reply)) == (401, "token_inactive")
    assert tenant.asked == 1


async def test_streaming_calls_do_not_wait_for_one_another(tenant: Tenant, provider: ScriptedProvider) -> None:
    provider.script = in_turn(holds(), sends(STREAM_HEAD, chunk(EVENTS), END))
    async with connected(tenant.house.url) as first:
        await first.send(call(tenant.token, PUBLIC, body=STREAM))
        await provider.next_exchange()
        reply = await asyncio.wait_for(tenant.send(PUBLIC, method="POST", path=CHAT, body=STREAM), 5)
    assert (reply.body, said_of(reply)) == (EVENTS, "stored")


async def test_a_call_whose_token_is_revoked_while_the_cache_is_asked_gets_nothing_of_it(
    tenant: Tenant, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script = numbered()
    assert said_of(await tenant.send()) == "stored"
    context = tenant.house.context
    look_up = context.cache.look_up

    async def revoked_meanwhile(*asked: Any) -> Any:
        found = await look_up(*asked)
        [running] = context.running.longest()
        running.end(ApiError("token_inactive", "This token was revoked."))
        return found

    monkeypatch.setattr(context.cache, "look_up", revoked_meanwhile)
    refused = await tenant.send()
    assert (refused.status, code_of(refused)) == (401, "token_inactive")
    assert (await event_of(tenant.house, 1)).outcome == "refused"
