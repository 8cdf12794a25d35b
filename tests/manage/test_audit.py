"""The audit log in the management API."""

import datetime
import itertools
import json
import random

import pytest
from stage.house import MANAGEMENT_TOKEN, House
from stage.management import Management

from llm_proxy import audit
from llm_proxy.audit import AuditEvent

EVENTS = [
    AuditEvent(
        action="project.create",
        actor="operator:aaaa",
        project_id="p1",
        request_id="r1",
        correlation_id="c1",
        client_ip="203.0.113.1",
        method="POST",
        path="/manage/projects",
        details={"project": {"name": "50% of_all \\ Büro"}},
        timestamp=1_000,
    ),
    AuditEvent(
        action="token.create",
        actor="operator:aaaa",
        project_id="p1",
        token_id="t1",
        request_id="r2",
        correlation_id="c1",
        client_ip="203.0.113.1",
        method="POST",
        path="/manage/tokens",
        timestamp=2_000,
    ),
    AuditEvent(
        action="token.revoke",
        actor="operator:bbbb",
        outcome="failure",
        reason="not_found",
        project_id="p1",
        token_id="t1",
        request_id="r3",
        client_ip="203.0.113.2",
        method="DELETE",
        path="/manage/tokens/t1",
        timestamp=3_000,
    ),
    AuditEvent(
        action="management.refuse",
        actor="unknown",
        outcome="denied",
        reason="invalid_management_token",
        request_id="r4",
        client_ip="203.0.113.3",
        method="GET",
        path="/manage/projects",
        user_agent="Guesser/1",
        timestamp=4_000,
    ),
]


def time(ms: int) -> str:
    """RFC 3339 for a time of the events above."""
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat().replace("+00:00", "Z")


FILTERS: dict[str, list[str]] = {
    name: sorted({str(getattr(event, name)) for event in EVENTS if getattr(event, name)}) for name in audit.EXACT_FILTERS
}


def fits(event: AuditEvent, filters: dict[str, str]) -> bool:
    """The plain meaning of exact filters."""
    return all(getattr(event, name) == value for name, value in filters.items())


async def found(api: Management, **filters: str) -> set[int]:
    """Which of the events are found, by their place in the table."""
    ids = [event.id for event in EVENTS]
    return {ids.index(event["id"]) for event in await api.audit(**filters)}


@pytest.fixture
async def filled(each_api: Management, each_house: House) -> Management:
    """A log that holds the events above and no others."""
    await audit.insert(each_house.context.database, EVENTS)
    return each_api


async def test_each_filter_alone_and_each_two_together_find_what_fits(filled: Management) -> None:
    single = [{name: value} for name, values in FILTERS.items() for value in values]
    double = [{**one, **two} for one, two in itertools.combinations(single, 2) if one.keys() != two.keys()]
    for filters in [{}, *single, *double[::3], {name: "nothing" for name in FILTERS if name != "outcome"}]:
        assert await found(filled, **filters) == {place for place, event in enumerate(EVENTS) if fits(event, filters)}, filters


async def test_all_filters_at_once_find_the_one_event_they_describe(filled: Management) -> None:
    event = EVENTS[1]
    every = {name: str(getattr(event, name)) for name in audit.EXACT_FILTERS}
    assert await found(filled, **every, search="tokens", start_time=time(2_000), end_time=time(2_001)) == {1}
    assert await found(filled, **{**every, "method": "GET"}) == set()


async def test_times_bound_the_events_from_the_start_and_before_the_end(filled: Management) -> None:
    for start, end, places in (
        (2_000, 9_000, {1, 2, 3}),
        (2_001, 9_000, {2, 3}),
        (0, 2_000, {0}),
        (0, 2_001, {0, 1}),
        (2_000, 4_000, {1, 2}),
        (4_000, 2_000, set()),
    ):
        assert await found(filled, start_time=time(start), end_time=time(end)) == places
    assert await found(filled, start_time=time(3_000)) == {2, 3}
    assert await found(filled, end_time=time(3_000)) == {0, 1}


async def test_times_may_be_given_in_any_zone(filled: Management) -> None:
    assert await found(filled, start_time="1970-01-01T09:00:03+09:00") == {2, 3}
    assert await found(filled, start_time="1969-12-31T19:00:03.000-05:00") == {2, 3}


async def test_search_finds_a_text_in_any_case_and_takes_every_character_as_it_is(filled: Management) -> None:
    for text, places in {
        "TOKEN": {1, 2, 3},
        "revoke": {2},
        "operator:BBBB": {2},
        "not_found": {2},
        "/manage/projects": {0, 3},
        "50% of_all": {0},
        "50%of": set(),
        "5_%": set(),
        "of-all": set(),
        "Büro": {0},
        "' OR 1=1 --": set(),
        "guesser": set(),
    }.items():
        assert await found(filled, search=text) == places, text
    assert await found(filled, search="manage", method="DELETE") == {2}


async def test_an_event_is_read_back_by_its_id(filled: Management) -> None:
    event = EVENTS[3]
    shown = await filled.done("GET", f"/manage/audit/{event.id}")
    assert shown == {**shown, "id": event.id, "timestamp": "1970-01-01T00:00:04.000Z", "user_agent": "Guesser/1", "details": {}}
    assert (await filled.audit(actor="unknown")) == [shown]
    assert await filled.refused("GET", "/manage/audit/nothing") == (404, "not_found", None)


async def test_an_act_tells_who_did_it_from_where_and_in_which_request(each_api: Management) -> None:
    headers = {"X-Request-ID": "r-7", "X-Correlation-ID": "c-7", "User-Agent": "robot/7"}
    made = (await each_api.ask("POST", "/manage/projects", {"name": "demo"}, headers=headers)).data
    [event] = await each_api.audit(request_id="r-7")
    assert event["actor"].startswith("operator:")
    assert event["details"] == {"project": made}
    shown = {name: value for name, value in event.items() if name not in ("id", "timestamp", "actor", "details")}
    assert shown == {
        "action": "project.create",
        "outcome": "success",
        "reason": None,
        "project_id": made["id"],
        "token_id": None,
        "request_id": "r-7",
        "correlation_id": "c-7",
        "client_ip": "127.0.0.1",
        "method": "POST",
        "path": "/manage/projects",
        "user_agent": "robot/7",
    }


async def test_every_write_leaves_one_event_and_reading_leaves_none(each_api: Management) -> None:
    project = await each_api.project()
    path = f"/manage/projects/{project}"
    await each_api.done("PATCH", path, {"name": "renamed"})
    provider = await each_api.done("POST", f"{path}/providers", {"api_key": "sk-first-0123456789abcdef"})
    await each_api.done("PATCH", f"{path}/providers/{provider['id']}", {"weight": 2})
    token = await each_api.token(project, name="first")
    await each_api.done("PATCH", f"/manage/tokens/{token['id']}", {"max_requests": 3, "name": "first"})
    for path_read in ("/manage/projects", path, "/manage/tokens", f"/manage/tokens/{token['id']}", f"{path}/providers"):
        await each_api.done("GET", path_read)
    await each_api.done("DELETE", f"{path}/providers/{provider['id']}")
    await each_api.done("DELETE", f"/manage/tokens/{token['id']}")
    await each_api.done("POST", f"{path}/tokens/revoke")
    await each_api.done("DELETE", path)
    events = {event["action"]: event for event in await each_api.audit()}
    assert list(events) == [
        "project.delete",
        "project.revoke_tokens",
        "token.revoke",
        "provider.delete",
        "token.update",
        "token.create",
        "provider.update",
        "provider.create",
        "project.update",
        "project.create",
    ]
    assert {event["project_id"] for event in events.values()} == {project}
    assert {event["outcome"] for event in events.values()} == {"success"}
    assert {name for name, event in events.items() if event["token_id"] == token["id"]} == {
        "token.create",
        "token.update",
        "token.revoke",
    }
    assert events["project.update"]["details"] == {"before": {"name": "demo"}, "after": {"name": "renamed"}}
    assert events["token.update"]["details"] == {"before": {"max_requests": None}, "after": {"max_requests": 3}}
    assert events["provider.update"]["details"]["after"] == {"weight": 2}


async def test_an_act_that_fails_leaves_an_event_that_says_so(each_api: Management) -> None:
    project = await each_api.project("taken")
    other = await each_api.project("other")
    token = await each_api.token(project)
    await each_api.refused("POST", "/manage/projects", {"name": "taken"})
    await each_api.refused("PATCH", f"/manage/projects/{other}", {"name": "taken"})
    await each_api.refused("PATCH", f"/manage/tokens/{token['id']}", {"max_requests": 0})
    await each_api.refused("DELETE", "/manage/projects/nobody")
    await each_api.audited(action="project.delete")
    failed = await each_api.audit(outcome="failure")
    shown = {(event["action"], event["reason"], event["project_id"], event["token_id"]) for event in failed}
    assert shown == {
        ("project.create", "already_exists", None, None),
        ("project.update", "already_exists", other, None),
        ("token.update", "invalid_field", project, token["id"]),
        ("project.delete", "not_found", None, None),
    }


async def test_an_id_without_end_does_not_stop_the_log(each_api: Management) -> None:
    wild = "".join(random.Random(7).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=8000))
    await each_api.refused("DELETE", f"/manage/projects/{wild}")
    await each_api.refused("DELETE", f"/manage/tokens/{wild}", headers={"User-Agent": wild})
    await each_api.refused("DELETE", "/manage/tokens/after")
    assert await each_api.audited(path="/manage/tokens/after")


async def test_a_token_that_was_taken_for_an_id_does_not_stay_in_the_log(api: Management) -> None:
    secret = (await api.token(await api.project()))["token"]
    await api.refused("DELETE", f"/manage/tokens/{secret}", headers={"User-Agent": f"Bearer {secret}"})
    [event] = await api.audited(action="token.revoke")
    assert secret not in json.dumps(event)
    assert event["path"].startswith("/manage/tokens/")
    assert MANAGEMENT_TOKEN not in json.dumps(await api.audit())
