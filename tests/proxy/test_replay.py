"""An answer from the cache: this call's own values, what it costs, what is told of it."""

import asyncio
import time
from pathlib import Path

import orjson
import pytest
from stage.asking import ASKING, CHAT, ask, call, code_of, event_of, until
from stage.cached import FRESH, MODELS, STALE, numbered, said_of, tenant_of
from stage.house import House, open_house, settings_for
from stage.management import managing
from stage.profiles import shipped
from stage.provider import ScriptedProvider, answer
from stage.raw import connected
from stage.scripts import in_turn, sends

from llm_proxy.cache import Entry, Lookup, Served, rules
from llm_proxy.changes import EVERYTHING
from llm_proxy.db import Database

THEIRS = b"X-Request-ID: theirs\r\nServer-Timing: db;dur=1\r\nX-Powered-By: them\r\nCache-Status: cdn; hit\r\nAge: 5\r\n"


async def counts(database: Database, id: str) -> tuple[int, int]:
    """Requests and hits of a token, as the database has them."""
    row = await database.fetch_one("SELECT request_count, cache_hit_count FROM tokens WHERE id = :id", {"id": id})
    assert row
    return row["request_count"], row["cache_hit_count"]


async def test_a_hit_carries_the_values_of_its_own_call(provider: ScriptedProvider, tmp_path: Path) -> None:
    origins = ("https://a.example", "https://b.example")
    provider.script = numbered(FRESH + THEIRS + b"Access-Control-Allow-Origin: https://evil.example\r\nSet-Cookie: a=1\r\n")
    async with open_house(settings_for(tmp_path), profiles=shipped(allowed_origins=origins)) as house:
        tenant = await tenant_of(house, provider)
        first = await tenant.send(b"X-Request-ID: one", b"X-Correlation-ID: c-one", b"Origin: https://a.example")
        again = await tenant.send(b"X-Request-ID: two", b"Origin: https://b.example")
    assert (said_of(first), said_of(again), again.body) == ("stored", "hit", first.body)
    assert first.header(b"X-UPSTREAM-REQUEST-START") and first.header(b"X-Upstream-Request-ID") == b"theirs"
    assert (again.header(b"X-Request-ID"), again.header(b"X-Correlation-ID")) == (b"two", None)
    assert again.header(b"Access-Control-Allow-Origin") == b"https://b.example"
    assert again.header(b"Age") in (b"5", b"6") and again.header(b"X-Powered-By") == b"them" and again.header(b"Date")
    timings = again.header(b"Server-Timing") or b""
    assert [part.partition(b";")[0] for part in timings.split(b", ")] == [b"auth", b"limit", b"cache"]
    lowered = again.head.lower()
    assert b"cache-status: cdn; hit\r\n" in lowered and b"cache-status: llm-proxy; hit; " in lowered
    for absent in (b"\r\nx-upstream", b"theirs", b"set-cookie", b"a.example", b"evil", b"c-one", tenant.project.encode()):
        assert absent not in lowered, absent


async def test_a_hit_gives_its_request_back_and_is_counted_in_the_database(house: House, provider: ScriptedProvider) -> None:
    provider.script = numbered()
    limited, free = [await tenant_of(house, provider, max_requests=limit) for limit in (2, None)]
    for tenant in (limited, free):
        assert [await tenant.how() for _ in range(6)] == ["stored", *["hit"] * 5]
    began = time.monotonic()
    async with asyncio.timeout(5):
        while (await counts(house.context.database, free.token_id))[1] < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    # It is written each second; a busy machine gets one more.
    assert time.monotonic() - began < 2
    assert await counts(house.context.database, free.token_id) == (1, 5)
    await house.context.quota.settle()
    assert await counts(house.context.database, limited.token_id) == (1, 5)
    async with managing(house) as operator:
        shown = await operator.done("GET", f"/manage/tokens/{limited.token_id}")
    assert (shown["request_count"], shown["cache_hit_count"]) == (1, 5)
    assert [await limited.how(path=f"{MODELS}/{number}") for number in range(2)] == ["stored", None]


async def test_a_hit_takes_the_rate_limits(house: House, provider: ScriptedProvider) -> None:
    provider.script = numbered(FRESH + b"X-RateLimit-Remaining-Requests: 9999\r\n")
    tenant = await tenant_of(house, provider, rate_limit_per_minute=3)
    replies = [await tenant.send() for _ in range(4)]
    assert [said_of(reply) for reply in replies] == ["stored", "hit", "hit", None]
    assert [reply.header(b"x-ratelimit-remaining-requests") for reply in replies] == [b"2", b"1", b"0", b"0"]
    assert code_of(replies[3]) == "rate_limit_exceeded" and tenant.asked == 1


async def test_what_a_hit_answered_is_in_its_event_where_bodies_are(provider: ScriptedProvider, tmp_path: Path) -> None:
    provider.script = numbered()
    async with open_house(settings_for(tmp_path, OBSERVABILITY_CAPTURE="bodies")) as house:
        tenant = await tenant_of(house, provider)
        assert [await tenant.how() for _ in range(2)] == ["stored", "hit"]
        assert [event.reply_body for event in house.events] == ['{"n": 1}'] * 2


async def test_an_answer_that_its_provider_had_to_confirm_is_paid_for(house: House, provider: ScriptedProvider) -> None:
    stored = answer(b"one", extra=STALE + b'ETag: "one"\r\n')
    provider.script = in_turn(sends(stored), sends(b'HTTP/1.1 304 Not Modified\r\nETag: "one"\r\n\r\n'))
    tenant = await tenant_of(house, provider)
    assert [await tenant.how() for _ in range(2)] == ["stored", "conditional-hit"]
    assert (await event_of(house, 1)).outcome == "completed"
    await house.context.quota.settle()
    assert await counts(house.context.database, tenant.token_id) == (2, 0)


async def test_a_hit_is_told_of_without_tokens(
    house: House, provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    provider.script = sends(answer(orjson.dumps({"model": "gpt-4o", "usage": usage})))
    tenant = await tenant_of(house, provider)
    for _ in range(3):
        await tenant.send(b"Cache-Control: public", method="POST", path=CHAT, body=orjson.dumps(ASKING))
    first, hit = await event_of(house), await event_of(house, 2)
    assert (first.outcome, first.cache, first.usage.total_tokens) == ("completed", "stored", 7)
    assert (hit.outcome, hit.cache, hit.status, hit.provider, hit.attempts) == ("cached", "hit", 200, None, 0)
    assert (hit.usage.total_tokens, hit.usage.source, hit.model, hit.first_byte) == (0, "none", "gpt-4o", None)
    assert hit.reply_bytes == first.reply_bytes and hit.endpoint == CHAT and hit.project_id == tenant.project
    house.context.bus.catch_up()
    written = "\n".join(record.message for record in caplog.records if record.name == "llm_proxy.calls")
    lines = [orjson.loads(line) for line in written.splitlines()]
    assert [line["cache"] for line in lines] == ["stored", "hit", "hit"]
    assert lines[2]["message"] == f"POST {CHAT} 200 cached"
    async with managing(house) as operator:
        summary = await operator.done("GET", "/metrics", headers={"Accept": "application/json"})
    found = {name: summary[name] for name in ("request_count", "cache_hits", "cache_misses", "cache_bypass", "cache_stores")}
    assert found == {"request_count": 3, "cache_hits": 2, "cache_misses": 1, "cache_bypass": 0, "cache_stores": 1}
    assert summary["tokens"] == 7


async def test_a_hit_whose_client_is_gone_is_no_hit(
    house: House, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script = numbered()
    tenant = await tenant_of(house, provider)
    await tenant.send()
    real = rules.serve

    def serve(entry: Entry, lookup: Lookup, now: float) -> Served:
        [running] = house.context.running.concerned_by(EVERYTHING)
        running.request.transport.close()  # type: ignore[attr-defined]
        return real(entry, lookup, now)

    monkeypatch.setattr(rules, "serve", serve)
    async with connected(house.url) as connection:
        await connection.send(call(tenant.token, method="GET", path=MODELS, body=b""))
        assert await connection.is_closed()
    event = await event_of(house, 1)
    assert (event.outcome, event.cache) == ("client_gone", "miss")
    await house.context.quota.settle()
    assert await counts(house.context.database, tenant.token_id) == (1, 0)


async def test_an_answer_to_http_1_0_is_replayed_with_its_length(house: House, provider: ScriptedProvider) -> None:
    provider.script = numbered()
    tenant = await tenant_of(house, provider)
    await tenant.send()
    reply = await ask(house.url, call(tenant.token, method="GET", path=MODELS, body=b"", version="1.0"), "GET")
    assert reply is not None and (reply.body, reply.header(b"Content-Length")) == (b'{"n": 1}', b"8")
    await until(lambda: not house.context.active)
