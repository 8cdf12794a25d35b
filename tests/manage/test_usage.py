"""The history of usage at the management API."""

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

import aiohttp
import pytest
import yaml
from jsonschema import Draft202012Validator
from stage.asking import until
from stage.cached import numbered, tenant_of
from stage.calls import call
from stage.house import House
from stage.management import Management
from stage.provider import Exchange, ScriptedProvider

from llm_proxy.clock import now_ms, to_rfc3339
from llm_proxy.events import Event

USAGE = "/manage/usage"
HOUR = 3_600_000
# 2026-11-01T23:59:00Z
LATE = 1_793_577_540_000
GROUPS: dict[str, Callable[[Event], Any]] = {
    "project": lambda event: event.project_id,
    "provider": lambda event: event.provider,
    "model": lambda event: event.model,
    "hour": lambda event: to_rfc3339(_end(event) // HOUR * HOUR),
    "day": lambda event: to_rfc3339(_end(event) // (24 * HOUR) * 24 * HOUR),
}


def _end(event: Event) -> int:
    return event.started_at + int(event.duration * 1000)


def event(model: str | None = "gpt-4o", *, project: str | None = "p1", at: int | None = None) -> Event:
    made = Event("r1", None, None, None, "POST", "/v1/chat/completions", started_at=now_ms() if at is None else at)
    made.project_id, made.provider, made.model, made.status, made.outcome = project, "openai", model, 200, "completed"
    return made


def publish(house: House, events: Iterable[Event]) -> None:
    for one in events:
        house.context.bus.publish(one)


@functools.cache
def description() -> Any:
    """The description of the API; reading it takes a third of a second."""
    return yaml.safe_load(resources.files("llm_proxy.web").joinpath("static/openapi.yaml").read_bytes())


def problems(answer: object) -> list[str]:
    """What is in an answer that the description does not have."""
    schema = {"$ref": "#/components/schemas/UsageList", "components": description()["components"]}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(answer)]


async def found(api: Management, **params: str) -> list[dict[str, Any]]:
    return list((await api.done("GET", USAGE, params=params))["data"])


def expected(events: list[Event], group_by: str) -> dict[Any, list[int]]:
    """What the events amount to: calls, errors, cache hits, tokens."""
    sums: dict[Any, list[int]] = {}
    for one in events:
        figures = sums.setdefault(GROUPS[group_by](one), [0] * 5)
        wrong = one.status >= 400 or one.outcome not in ("completed", "cached", "client_gone")
        told = (1, wrong, one.outcome == "cached", one.usage.prompt_tokens, one.usage.completion_tokens)
        figures[:] = [old + int(new) for old, new in zip(figures, told, strict=True)]
    return sums


async def test_usage_is_what_the_events_say_before_and_after_it_is_written(
    each_api: Management, each_house: House, provider: ScriptedProvider, fake: str
) -> None:
    async with aiohttp.ClientSession() as client:
        token = await each_house.token_for(fake)
        for model in ("gpt-4o", "gpt-4o", "o3"):
            assert (await call(client, each_house, token, model=model))[0] == 200
        assert (await call(client, each_house, token, stream=True, stream_options={"include_usage": True}))[0] == 200
        assert (await call(client, each_house, await each_house.token_for(fake, allowed_models=["x"])))[0] == 403
        assert (await call(client, each_house, "sk-lp-unknown"))[0] == 401
        assert (await call(client, each_house, await each_house.token_for("http://127.0.0.1:9")))[0] >= 500
    provider.script = numbered()
    tenant = await tenant_of(each_house, provider)
    assert [await tenant.how() for _ in range(3)] == ["stored", "hit", "hit"]
    await until(lambda: len(each_house.events) == 10)
    for _ in range(2):
        for group_by in GROUPS:
            rows = await found(each_api, group_by=group_by)
            key = next(iter(rows[0]))
            names = ("calls", "errors", "cache_hits", "prompt_tokens", "completion_tokens")
            assert {row[key]: [row[name] for name in names] for row in rows} == expected(each_house.events, group_by)
        await each_house.context.history.settle()
    [row] = await found(each_api, group_by="day", project_id=tenant.project)
    slowest = max(one.duration for one in each_house.events if one.project_id == tenant.project) * 1000
    assert 0 < row["latency_p50_ms"] <= row["latency_p95_ms"] <= 2.5 * slowest + 1 and row["overhead_ms"] > 0
    assert [row["calls"] for row in await found(each_api, model="gpt-4o", group_by="model")] == [5]
    assert await found(each_api, provider="nowhere") == []
    names = {row["project_id"]: row["project_name"] for row in await found(each_api)}
    assert names[tenant.project] and names[None] is None


async def test_a_stream_that_breaks_is_an_error(house: House, api: Management, provider: ScriptedProvider) -> None:
    async def broken(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
        raise ConnectionResetError

    provider.script = broken
    token = await house.token_for(provider.url)
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientError):
            await call(client, house, token)
    await until(lambda: house.events)
    [row] = await found(api)
    assert (row["calls"], row["errors"], house.events[0].status) == (1, 1, 200)


async def test_hours_and_days_are_those_of_utc_and_times_bound_by_minutes(api: Management, house: House) -> None:
    publish(house, [event(at=LATE), event(at=LATE + 59_999), event(at=LATE + 60_000), event(at=LATE + 60_000 + HOUR)])
    span = {"start_time": "2026-11-01T00:00:00Z", "end_time": "2026-11-03T00:00:00Z"}
    hours = {row["hour"]: row["calls"] for row in await found(api, group_by="hour", **span)}
    assert hours == {"2026-11-01T23:00:00.000Z": 2, "2026-11-02T00:00:00.000Z": 1, "2026-11-02T01:00:00.000Z": 1}
    days = {row["day"]: row["calls"] for row in await found(api, group_by="day", **span)}
    assert days == {"2026-11-01T00:00:00.000Z": 2, "2026-11-02T00:00:00.000Z": 2}
    for start, end, calls in (
        ("2026-11-01T23:59:00Z", "2026-11-02T00:00:00Z", 2),
        ("2026-11-01T23:59:59.999Z", "2026-11-02T00:00:00Z", 2),
        ("2026-11-02T00:00:00Z", "2026-11-02T00:00:00.001Z", 1),
        ("2026-11-02T09:00:00+09:00", "2026-11-02T00:00:00Z", 0),
    ):
        rows = await found(api, start_time=start, end_time=end)
        assert sum(row["calls"] for row in rows) == calls, (start, end)
    assert await found(api) == [], "by default it is the last 24 hours"
    assert sum(row["calls"] for row in await found(api, end_time="2026-11-03T00:00:00Z")) == 2


@pytest.mark.parametrize("group_by", ["model", "hour"])
async def test_pages_go_through_all_groups_once(api: Management, house: House, group_by: str) -> None:
    start = now_ms() - 10 * HOUR
    publish(house, [event(model, at=start + number * HOUR) for number, model in enumerate(("a", "=b", "ö", None, "c"))])
    whole = await found(api, group_by=group_by)
    paged: list[dict[str, Any]] = []
    params = {"group_by": group_by, "limit": "2"}
    while True:
        page = await api.done("GET", USAGE, params=params)
        paged += page["data"]
        if not page["has_more"]:
            break
        params["after"] = page["next"]
    assert paged == whole and len(whole) == 5 and page["next"] is None
    if group_by == "model":
        assert [row["model"] for row in whole] == ["=b", "a", "c", "ö", None]


async def test_every_grouping_is_answered_as_described(api: Management, house: House) -> None:
    publish(house, [event(), event(None, project=None)])
    answers = [await api.done("GET", USAGE, params={"group_by": group_by, "limit": "1"}) for group_by in GROUPS]
    assert [problems(answer) for answer in answers] == [[]] * len(GROUPS)
    assert [len(answer["data"]) for answer in answers] == [1] * len(GROUPS)


async def test_csv_holds_what_json_does_and_runs_nothing(api: Management, house: House) -> None:
    evil = await api.project("=HYPERLINK(1)")
    publish(house, [event(project=evil), event(project=None), event("-2+3", project="gone")])
    for way in ({"params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}):
        reply = await api.ask("GET", USAGE, **way)  # type: ignore[arg-type]
        assert reply.headers["Content-Type"].startswith("text/csv") and "usage.csv" in reply.headers["Content-Disposition"]
        rows = list(csv.DictReader(io.StringIO(reply.text, newline="")))
        data = await found(api)
        shown = [{name: "" if value is None else str(value) for name, value in row.items()} for row in data]
        assert [{**row, "project_name": row["project_name"].removeprefix("'")} for row in rows] == shown
        assert {row["project_name"] for row in rows} == {"'=HYPERLINK(1)", ""}
    reply = await api.ask("GET", USAGE, params={"format": "csv", "group_by": "model"})
    assert reply.text.split("\r\n")[1].startswith("'-2+3,1,") and reply.text.endswith("\r\n")
    both = await api.ask("GET", USAGE, headers={"Accept": "application/json, text/csv"})
    assert both.data["object"] == "list"


async def test_without_calls_csv_has_its_head(api: Management) -> None:
    reply = await api.ask("GET", USAGE, params={"format": "csv", "group_by": "day"})
    assert reply.text.startswith("day,calls,errors,cache_hits,") and reply.text.count("\r\n") == 1


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": ""}, "group_by"),
        ({"start_time": "yesterday"}, "start_time"),
        ({"start_time": "2026-11-01T00:00:00"}, "start_time"),
        ({"end_time": "9"}, "end_time"),
        ({"start_time": "2999-01-01T00:00:00Z"}, "start_time"),
        ({"start_time": "2026-11-02T00:00:00Z", "end_time": "2026-11-01T00:00:00Z"}, "start_time"),
        ({"format": "xml"}, "format"),
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"group_by": "hour", "after": "gpt-4o"}, "after"),
        ({"format": "csv", "limit": "5"}, "limit"),
        ({"format": "csv", "after": "x"}, "after"),
        ({"token_id": "x"}, "token_id"),
    ],
    ids=json.dumps,
)
async def test_what_cannot_be_asked_is_refused(api: Management, params: dict[str, str], param: str) -> None:
    assert await api.refused("GET", USAGE, params=params) == (400, "invalid_field", param)


async def test_names_that_are_no_text_find_nothing(each_api: Management) -> None:
    for value in ("%00", "%ff", "' OR 1=1 --", "x" * 3000):
        reply = await each_api.ask("GET", USAGE, params={"model": value})
        assert (reply.status, reply.data["data"]) == (200, [])


async def test_times_far_away_are_answered_at_once(api: Management, house: House) -> None:
    publish(house, [event()])
    ends = {"start_time": "0001-01-01T00:00:00Z", "end_time": "9999-12-31T23:59:59Z"}
    assert [row["calls"] for row in await found(api, group_by="day", **ends)] == [1]
