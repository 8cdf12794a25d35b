"""Whoever goes, whenever they go: the provider is told at once, and nothing is left behind."""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from stage.asking import BODY, CHAT, MESSAGES, STREAM, ask, call, code_of, event_of, until
from stage.house import TESTER, House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import END, STREAM_HEAD, Exchange, Script, ScriptedProvider, answer, chunk
from stage.raw import connected
from stage.scripts import black_hole, holds, sends

from llm_proxy.acts import projects, tokens
from llm_proxy.errors import ApiError
from llm_proxy.tokens import Token

PROMPT_SECONDS = 0.1
FIRST = b'event: message_start\ndata: {"type":"message_start","message":{"model":"claude-x","usage":{"input_tokens":7}}}\n\n'
LEAVING: dict[str, tuple[Script, bytes]] = {
    "before-the-head": (holds(), b""),
    "after-half-a-head": (holds(b"HTTP/1.1 200 OK\r\nContent-"), b""),
    "before-the-first-byte": (holds(STREAM_HEAD), b"\r\n\r\n"),
    "in-mid-stream": (holds(STREAM_HEAD, chunk(FIRST)), FIRST),
    "in-mid-event": (holds(STREAM_HEAD, chunk(FIRST + b"data: {")), b"data: {"),
}


def idle(house: House) -> bool:
    """Whether nothing of any call is left."""
    return not house.context.active and not len(house.context.running)


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_client_that_leaves_ends_its_call_at_the_provider(house: House, provider: ScriptedProvider, how: str) -> None:
    token = await house.token_for(provider.url, provider_type="anthropic", max_requests=len(LEAVING))
    for number, (name, (script, seen)) in enumerate(LEAVING.items()):
        provider.script = script
        async with connected(house.url) as connection:
            await connection.send(call(token, path=MESSAGES, body=STREAM))
            exchange = await provider.next_exchange()
            await connection.reader.readuntil(seen) if seen else None
            left = time.monotonic()
            connection.abort() if how == "abort" else connection.writer.close()
            await asyncio.wait_for(exchange.closed.wait(), 2)
        assert exchange.closed_at is not None and exchange.closed_at - left < PROMPT_SECONDS, name
        event = await event_of(house, number)
        assert (event.outcome, event.code, event.status) == ("client_gone", None, 200 if seen else 0), name
        assert event.usage.prompt_tokens == (7 if FIRST in seen or seen == b"data: {" else 0), name
        assert idle(house)
    assert len(house.events) == len(LEAVING)
    # Each of them reached the provider, so each counts.
    assert code_of(await ask(house.url, call(token))) == "request_limit_exhausted"


async def test_a_client_that_leaves_before_its_provider_was_reached_gets_its_request_back(tmp_path: Path) -> None:
    with black_hole() as url:
        async with open_house(settings_for(tmp_path), profiles=shipped(timeouts={"connect": 0.2})) as house:
            token = await house.token_for(url, max_requests=1)
            for number in range(3):
                async with connected(house.url) as connection:
                    await connection.send(call(token))
                    await until(lambda number=number: house.context.active and len(house.context.running))
                    connection.abort()
                assert (await event_of(house, number)).outcome == "client_gone"
            assert code_of(await ask(house.url, call(token))) == "upstream_timeout"


@pytest.mark.parametrize("size", [2_000, 3_000_000], ids=["held", "streamed"])
async def test_a_client_that_leaves_within_its_body_never_completes_it(
    house: House, provider: ScriptedProvider, size: int
) -> None:
    token = await house.token_for(provider.url, max_requests=1)
    provider.reads_bodies = False
    provider.script = holds()
    async with connected(house.url) as connection:
        whole = call(token, b"Content-Type: audio/wav", path="/v1/files", body=b"w" * size)
        await connection.send(whole[: len(whole) - 1_000])
        if size > 2**20:
            exchange = await provider.next_exchange()
        else:
            await until(lambda: len(house.context.running))
        connection.abort()
    event = await event_of(house)
    assert event.outcome == "client_gone"
    await until(lambda: idle(house))
    provider.reads_bodies, provider.script = True, sends(answer(b"{}"))
    reply = await ask(house.url, call(token))
    assert reply is not None
    if size > 2**20:
        await asyncio.wait_for(exchange.closed.wait(), 2)
        assert (reply.status, code_of(reply)) == (429, "request_limit_exhausted")
    else:
        assert (reply.status, len(provider.exchanges)) == (200, 1)


@dataclass
class Holder:
    """A token with its project, and the acts that take its permission away."""

    house: House
    project: str
    token: Token

    async def revoke(self) -> None:
        await tokens.revoke(self.house.context, TESTER, self.token.id)

    async def deactivate(self) -> None:
        await tokens.update(self.house.context, TESTER, self.token.id, {"is_active": False})

    async def revoke_all(self) -> None:
        await projects.revoke_tokens(self.house.context, TESTER, self.project, {})

    async def deactivate_project(self) -> None:
        await projects.deactivate(self.house.context, TESTER, self.project)


ACTS = {
    Holder.revoke: "token_inactive",
    Holder.deactivate: "token_inactive",
    Holder.revoke_all: "token_inactive",
    Holder.deactivate_project: "project_inactive",
}


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_revocation_ends_a_running_stream(house: House, provider: ScriptedProvider, path: str) -> None:
    provider.script = holds(STREAM_HEAD, chunk(b"data: 1\n\ndata: {"))
    for number, (act, code) in enumerate(ACTS.items()):
        project = await house.project(provider.url, provider_type="anthropic")
        made, secret = await tokens.create(house.context, TESTER, {"project_id": project})
        async with asyncio.timeout(5), connected(house.url) as connection:
            await connection.send(call(secret.reveal(), path=path, body=STREAM))
            await connection.reader.readuntil(b"data: {\r\n")
            began = time.monotonic()
            await act(Holder(house, project, made))
            rest = await connection.reader.read()
            assert time.monotonic() - began < 1
            await provider.exchanges[-1].closed.wait()
        assert b"[DONE]" not in rest and not rest.endswith(b"0\r\n\r\n")
        lead, _, error = rest.partition(b"\r\n\n\n")[2].partition(b"data: ")
        assert lead == (b"event: error\n" if path == MESSAGES else b"")
        assert orjson.loads(error.split(b"\n\n")[0])["error"]["code"] == code
        event = await event_of(house, number)
        assert (event.outcome, event.code) == ("refused", code)
        assert idle(house)


async def test_a_revocation_ends_a_call_that_waits(house: House, provider: ScriptedProvider) -> None:
    project = await house.project(provider.url)
    made, secret = await tokens.create(house.context, TESTER, {"project_id": project})
    provider.script = holds()
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(secret.reveal()))
        exchange = await provider.next_exchange()
        await tokens.revoke(house.context, TESTER, made.id)
        reply = await connection.answer()
        assert (reply.status, code_of(reply)) == (401, "token_inactive")  # type: ignore[union-attr]
        await exchange.closed.wait()


async def test_other_acts_leave_a_stream_alone(house: House, provider: ScriptedProvider) -> None:
    project = await house.project(provider.url)
    made, secret = await tokens.create(house.context, TESTER, {"project_id": project})
    other, _ = await tokens.create(house.context, TESTER, {"project_id": project})
    went = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
        await went.wait()
        await exchange.send(END)

    provider.script = script
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(secret.reveal(), body=STREAM))
        await connection.reader.readuntil(b"data: 1\n\n")
        await tokens.update(house.context, TESTER, made.id, {"name": "another name"})
        await tokens.revoke(house.context, TESTER, other.id)
        await projects.update(house.context, TESTER, project, {"name": "another"})
        went.set()
        assert await connection.reader.readuntil(b"0\r\n\r\n")
    assert (await event_of(house)).outcome == "completed"


async def whole(exchange: Exchange) -> None:
    """Answer as a quick provider does."""
    await exchange.send(answer(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'))


async def in_pieces(exchange: Exchange) -> None:
    """Answer as a model does that thinks."""
    await exchange.send(STREAM_HEAD)
    for _ in range(10):
        await exchange.send(chunk(FIRST))
        await asyncio.sleep(0.001)
    await exchange.send(END)


PROVIDERS: tuple[Script, ...] = (
    whole,
    in_pieces,
    holds(),
    holds(STREAM_HEAD, chunk(FIRST)),
    sends(STREAM_HEAD, chunk(FIRST), close=True),
)
CALLS, TOGETHER = 200, 20


async def client(house: House, data: bytes, chance: random.Random) -> None:
    """Send a call, perhaps not all of it, read its answer for a while, leave."""
    async with connected(house.url) as connection:
        await asyncio.sleep(chance.uniform(0, 0.003))
        await connection.send(data[: chance.choice([10, 300, len(data) - 1, *[len(data)] * 12])])
        try:
            async with asyncio.timeout(chance.choice([0.003, 0.01, 0.03, 0.1])):
                await connection.answer()
        except TimeoutError:
            pass
        connection.abort() if chance.random() < 0.7 else connection.writer.close()


async def test_whoever_leaves_at_any_moment_leaves_nothing_behind(house: House, provider: ScriptedProvider) -> None:
    chance = random.Random(7)
    token = await house.token_for(provider.url, provider_type="anthropic", max_requests=100 * CALLS)
    under_way = 0

    async def script(exchange: Exchange) -> None:
        nonlocal under_way
        under_way += 1
        try:
            await chance.choice(PROVIDERS)(exchange)
        finally:
            under_way -= 1

    provider.script = script
    calls = [call(token, path=MESSAGES, body=chance.choice([BODY, STREAM, b"x" * 100_000])) for _ in range(CALLS)]
    for start in range(0, CALLS, TOGETHER):
        clients = [client(house, data, chance) for data in calls[start : start + TOGETHER]]
        interruptions = chance.randrange(3)
        running = asyncio.gather(*clients)
        for _ in range(interruptions):
            await asyncio.sleep(chance.uniform(0, 0.02))
            house.context.running.end_all(ApiError("shutting_down", "A rehearsal."))
        await running
    await until(lambda: idle(house))
    await until(lambda: not under_way)
    ids = [event.id for event in house.events]
    assert len(ids) == len(set(ids)) >= CALLS // 2
    assert {event.outcome for event in house.events} <= {
        "completed",
        "client_gone",
        "upstream_incomplete",
        "upstream_failed",
        "aborted_by_shutdown",
    }
    assert sum(event.outcome == "client_gone" for event in house.events) > 20
    reached = sum(event.connect is not None for event in house.events)
    assert len(provider.exchanges) <= reached
    await house.context.quota.settle()
    [row] = await house.context.database.fetch_all("SELECT request_count FROM tokens", {})
    assert row["request_count"] == reached
    provider.script = whole
    assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]


async def test_a_token_revoked_while_its_body_comes_ends_the_call_at_once(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    async with connected(house.url) as connection:
        whole = call(token)
        await connection.send(whole[:-5])
        await until(lambda: len(house.context.running) == 1)
        [running] = house.context.running.longest()
        await tokens.revoke(house.context, TESTER, running.token_id)
        refused = await asyncio.wait_for(connection.answer("POST"), 1)
    assert refused and refused.status == 401 and code_of(refused) == "token_inactive"
    assert (await event_of(house)).outcome == "refused"
    assert (await event_of(house)).attempts == 0
