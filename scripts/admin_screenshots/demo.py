"""Makes a house look lived in: projects, tokens and providers of a company, and a day of their calls."""

import asyncio
import contextlib
import dataclasses
import math
import pathlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from stage.house import House

from llm_proxy.acts import master_keys, projects, providers, tokens
from llm_proxy.audit import Who
from llm_proxy.clock import DAY_MS, HOUR_MS, MINUTE_MS, now_ms
from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.events.recorders import facts_of

ADA = Who("operator:5f3a91c2", client_ip="198.51.100.23", user_agent="Mozilla/5.0")
KEY = "sk-demo-" + "0123456789abcdef" * 2
# The same pictures each time, times apart.
CHANCE = random.Random(20261121)
CALLS, AT_A_TIME, RUNNING = 420, 8, 3
# Of a project: how many of its calls there are for each call of the quietest, and what it calls.
OWNERS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "Internal tools": (1, ("gpt-4o-mini",)),
    "Data science sandbox": (1, ("gpt-4o", "claude-sonnet-4-5")),
    "Voice assistant": (3, ("gpt-4o-mini",)),
    "Search and retrieval": (5, ("text-embedding-3-small", "gpt-4o-mini")),
    "Mobile app": (6, ("gpt-4o-mini", "claude-haiku-4-5")),
    "Customer support": (8, ("gpt-4o", "claude-sonnet-4-5", "gpt-4o-mini")),
}
STOPPED = "Data science sandbox"
# A token's name, and its fields.
TOKENS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("production", {"duration_minutes": 129_600, "max_requests": 120, "rate_limit": 50}),
    ("staging", {"duration_minutes": 10_080, "max_requests": 30, "allowed_models": ["gpt-4o*", "text-embedding-*"]}),
    ("developer laptop", {"duration_minutes": 480}),
)
POOL: tuple[dict[str, Any], ...] = (
    {"id": "openai-eu", "name": "OpenAI, Europe", "weight": 3},
    {"id": "openai-us", "name": "OpenAI, United States", "weight": 1},
    {"id": "shared-anthropic", "name": "Anthropic", "provider_type": "anthropic", "model_mapping": {"claude-*": "claude-*"}},
    {"id": "groq-trial", "name": "Groq (trial)", "provider_type": "groq", "weight": 0},
)
# Keys of the busiest project.
OWN: tuple[dict[str, Any], ...] = (
    {"id": "support-openai", "name": "Key of the support team", "weight": 4, "model_mapping": {"gpt-*": "gpt-*"}},
    {"id": "support-anthropic", "name": "Key of the support team, Anthropic", "provider_type": "anthropic"},
)
QUESTIONS = (
    "Where is my parcel? The last message was three days ago.",
    "Summarise this ticket in two sentences for the next shift.",
    "Which of these invoices is not paid yet?",
    "Write a friendly answer to a customer who waited too long.",
    "Translate the menu into French and Polish.",
)


@dataclass
class Demo:
    """Things of the house that pictures are about, by the places in the paths of pages."""

    ids: dict[str, str]

    def filled(self, path: str) -> str:
        """A page's path with real ids in its places."""
        provider = (OWN if "/keys/" in path else POOL)[0]["id"]
        return path.replace("{provider_id}", provider).replace("{id}", self.ids.get(path.partition("/")[0], ""))


@dataclass(frozen=True)
class Caller:
    """An application of a project."""

    token: str
    models: tuple[str, ...]
    has_quota: bool


@asynccontextmanager
async def furnished(house: House, fake: str) -> AsyncIterator[Demo]:
    """A house in which a company has worked for a day, and whose last calls are still running.

    Args:
        fake: the address of the fake provider, which answers all of them.
    """
    context = house.context
    for one in POOL:
        await providers.create(context, ADA, None, {"api_key": KEY, "api_base": fake, **one})
    callers, ids = await _callers(house)
    for one in OWN:
        await providers.create(context, ADA, ids["projects"], {"api_key": KEY, "api_base": fake, **one})
    await master_keys.create(context, ADA, {"id": "nightly", "name": "Nightly evaluation", "allowed_models": ["gpt-4o*"]})
    async with aiohttp.ClientSession(house.url) as client:
        room = asyncio.Semaphore(AT_A_TIME)
        await asyncio.gather(*(_call(client, room, CHANCE.choice(callers)) for _ in range(CALLS)))
        await _remember_a_day(house)
        letter = await _dead_letters(house)
        began = [asyncio.Event() for _ in range(RUNNING)]
        free = [caller for caller in callers if not caller.has_quota]
        running = [asyncio.ensure_future(_long_call(client, CHANCE.choice(free), event)) for event in began]
        async with asyncio.timeout(10):
            await asyncio.gather(*(event.wait() for event in began))
        # Pages show addresses that a company would have; what runs goes on at the fake provider.
        for project, known in ((None, POOL), (ids["projects"], OWN)):
            for one in known:
                await providers.update(context, ADA, project, one["id"], {"api_base": None})
        await _age(house)
        row = await context.database.fetch_one("SELECT id FROM audit_events WHERE action = 'token.create' LIMIT 1")
        assert row
        found = {"audit": row["id"], "events": letter, "requests": house.events[-1].id}
        yield Demo({**ids, **found, "master-keys": "nightly"})
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _callers(house: House) -> tuple[list[Caller], dict[str, str]]:
    """The tokens of every project, as often as they call, and the ids of the busiest project and its token."""
    context, callers, ids = house.context, list[Caller](), dict[str, str]()
    for name, (share, models) in OWNERS.items():
        project = await projects.create(context, ADA, {"name": name, **({"rate_limit": 100} if share > 4 else {})})
        for (label, fields), times in zip(TOKENS, (6, 2, 1), strict=True):
            made, secret = await tokens.create(context, ADA, {"project_id": project.id, "name": label, **fields})
            callers += [Caller(secret.reveal(), models, "max_requests" in fields)] * share * times * (name != STOPPED)
            ids |= {"projects": project.id} | ({"tokens": made.id} if label == "production" else {})
        if name == STOPPED:
            await projects.update(context, ADA, project.id, {"is_active": False})
    made, _ = await tokens.create(context, ADA, {"project_id": ids["projects"], "name": "old web shop"})
    await tokens.revoke(context, ADA, made.id)
    return callers, ids


async def _call(client: aiohttp.ClientSession, room: asyncio.Semaphore, caller: Caller) -> None:
    """One call as applications make them: most go well, some are answered from the cache, a few fail."""
    model, headers = CHANCE.choice(caller.models), {"X-Fake-Delay": f"{CHANCE.lognormvariate(-1.2, 0.6):.3f}"}
    chance = CHANCE.random()
    if chance < 0.012:
        headers["X-Fake-Status"] = CHANCE.choice(("400", "429"))
    elif chance < 0.02:
        headers["X-Fake-Cut"] = "9"
    async with room:
        if model.startswith("text-embedding"):
            headers["Cache-Control"] = "public, max-age=3600"
            await _ask(client, caller.token, "/v1/embeddings", {"model": model, "input": CHANCE.choice(QUESTIONS)}, headers)
        else:
            await _ask(client, caller.token, *_chat(model, CHANCE.random() < 0.6), headers)


def _chat(model: str, stream: bool) -> tuple[str, dict[str, Any]]:
    body = {"model": model, "messages": [{"role": "user", "content": CHANCE.choice(QUESTIONS)}], "stream": stream}
    return ("/v1/messages", {**body, "max_tokens": 512}) if model.startswith("claude") else ("/v1/chat/completions", body)


async def _long_call(client: aiohttp.ClientSession, caller: Caller, began: asyncio.Event) -> None:
    """A stream that outlasts the pictures."""
    faults = {"X-Fake-Words": "5000", "X-Fake-Drip": "0.1"}
    await _ask(client, caller.token, *_chat("gpt-4o-mini", True), faults, began.set)


async def _ask(
    client: aiohttp.ClientSession,
    token: str,
    path: str,
    body: dict[str, Any],
    headers: dict[str, str],
    on_bytes: Callable[[], None] = lambda: None,
) -> None:
    sent = {"Authorization": f"Bearer {token}", "X-Fake-Words": str(CHANCE.randint(20, 180)), **headers}
    # A stream that breaks is part of a day's work.
    with contextlib.suppress(aiohttp.ClientError):
        async with client.post(path, json=body, headers=sent) as reply:
            async for _ in reply.content.iter_any():
                on_bytes()


async def _remember_a_day(house: House) -> None:
    """Count the calls that were made again and again over the last day, more by day than by night."""
    history, now = house.context.history, now_ms()
    # The busiest time is now, when as many were made in a minute as this house has seen in its first.
    for minute in range(24 * 60 - 1, 0, -1):
        busy = 1.15 - math.cos((24 * 60 - minute) / (24 * 60) * 2 * math.pi - 3.6)
        for event in CHANCE.choices(house.events, k=round(busy * CHANCE.uniform(70, 110))):
            history.count(dataclasses.replace(event, started_at=now - minute * MINUTE_MS))
        if minute % 60 == 0:
            await history.settle()
    await history.settle()


async def _dead_letters(house: House) -> str:
    """Events that a sink refused; the id of one letter."""
    letters = DeadLetters(pathlib.Path(house.context.settings.event_dir) / FILE)
    for event in house.events[:3]:
        await letters.add("lunary", "413: the body is larger than this project allows", event=facts_of(event))
    [letter, *_] = letters.letters()
    return letter.id


async def _age(house: House) -> None:
    """What was made a minute ago was made over the last weeks, in the same order."""
    database = house.context.database
    for table, least in (("projects", 9 * DAY_MS), ("tokens", 7 * HOUR_MS), ("providers", 5 * DAY_MS)):
        rows = await database.fetch_all(f"SELECT id FROM {table} ORDER BY id DESC LIMIT 100")
        for place, row in enumerate(rows):
            older = {"id": row["id"], "age": least + place * 31 * HOUR_MS + CHANCE.randint(0, HOUR_MS)}
            await database.execute(f"UPDATE {table} SET created_at = created_at - :age WHERE id = :id", older)
