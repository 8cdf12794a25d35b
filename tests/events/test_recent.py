"""The newest events are kept, within bounds, and found by what people know of a call."""

import sys
from typing import Any

import pytest

from llm_proxy.events import Event
from llm_proxy.events import recent as module
from llm_proxy.events.recent import KEPT, NO_BODIES, Bodies, Filter, RecentEvents


def event(number: int = 0, **facts: Any) -> Event:
    """An event with these facts."""
    made = Event(f"r{number}", None, "192.0.2.1", "curl/8", "POST", "/v1/chat/completions", id=f"e{number}")
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def filled(count: int, **facts: Any) -> RecentEvents:
    """So many events, numbered from 1 like `RecentEvents` does."""
    recent = RecentEvents()
    for number in range(1, count + 1):
        recent.add(event(number, **facts))
    return recent


def test_one_more_than_fit_drops_the_first_with_its_bodies() -> None:
    recent = filled(KEPT, request_body="asked")
    assert recent.get("e1") and recent.bodies("e1").request == "asked"
    recent.add(event(KEPT + 1))
    assert (len(recent), recent.count) == (KEPT, KEPT + 1)
    assert (recent.get("e1"), recent.bodies("e1"), recent.number_of("e1")) == (None, NO_BODIES, None)
    assert [found.id for found in recent.newest_first()] == [f"e{number}" for number in range(KEPT + 1, 1, -1)]
    for number in range(KEPT):
        recent.add(event(KEPT + 2 + number))
    assert recent._body_bytes == 0 and not recent._bodies


def test_what_came_after_a_number_is_told_newest_first_as_far_as_it_is_kept() -> None:
    recent = filled(KEPT + 5)
    seen = recent.number_of(f"e{KEPT + 2}")
    assert seen == KEPT + 2
    assert [found.id for found in recent.after(seen)] == [f"e{KEPT + 5}", f"e{KEPT + 4}", f"e{KEPT + 3}"]
    assert recent.after(recent.count) == recent.after(recent.count + 9) == []
    assert len(recent.after(0)) == KEPT


def test_bodies_are_bounded_in_sum_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # One letter beyond Latin-1 makes Python store all of a text in two bytes each.
    body = "Ω" * 1000
    monkeypatch.setattr(module, "BODY_BYTES", 4 * sys.getsizeof(body))
    recent, given = RecentEvents(), event(1, request_body=body, reply_body=body)
    recent.add(given)
    assert recent.bodies("e1") == Bodies(body, body)
    assert given.request_body == body, "the event is others' too"
    kept = recent.get("e1")
    assert kept and kept.request_body is kept.reply_body is None
    recent.add(event(2, reply_body=body))
    recent.add(event(3, reply_body=body))
    assert recent.bodies("e1").request == body
    recent.add(event(4, reply_body=body))
    assert [recent.bodies(f"e{number}") for number in (1, 2)] == [NO_BODIES, Bodies(None, body)]
    assert recent.get("e1"), "only the bodies are let go"
    recent.add(event(5, request_body="x" * 9999))
    assert recent.bodies("e5") == NO_BODIES and recent._body_bytes == 0


def test_where_events_are_to_be_silent_on_the_client_nobody_is_shown_it() -> None:
    recent, given = RecentEvents(nameless=True), event(1)
    recent.add(given)
    kept = recent.get("e1")
    assert kept and (kept.client_ip, kept.user_agent) == (None, None)
    assert given.client_ip == "192.0.2.1"


CALL = event(
    1,
    project_id="p1",
    project_name="Support",
    token_id="t1",
    token_name="web",
    provider="pool",
    model="gpt-4o",
    model_used="gpt-4o-2024",
    status=404,
    outcome="completed",
    code="not_found",
    correlation_id="c-77",
    upstream_request_id="up-9",
)


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({}, True),
        ({"project_id": "p1"}, True),
        ({"project_id": "p2"}, False),
        ({"token_id": "t1", "provider": "pool", "model": "gpt-4o"}, True),
        ({"token_id": "t1", "provider": "other"}, False),
        ({"model": "gpt"}, False),
        ({"status": "4xx"}, True),
        ({"status": "2xx"}, False),
        ({"status": "none"}, False),
        ({"outcome": "completed"}, True),
        ({"outcome": "refused"}, False),
        ({"text": "SUPPORT"}, True),
        ({"text": "chat/comp"}, True),
        ({"text": "192.0.2."}, True),
        ({"text": "curl"}, True),
        ({"text": "not_found"}, True),
        ({"text": "c-77"}, True),
        ({"text": "up-9"}, True),
        ({"text": "2024"}, True),
        ({"text": "e1\nr1"}, True),
        ({"text": "web"}, True),
        ({"text": "nowhere"}, False),
        ({"text": "none"}, False),
    ],
    ids=str,
)
def test_a_filter_wants(given: dict[str, str], fits: bool) -> None:
    assert Filter(**given).fits(CALL) == fits


def test_a_call_that_runs_is_judged_by_what_is_known_of_it() -> None:
    wanted = Filter(project_id="p1", status="5xx", outcome="refused")
    assert wanted.concerns(CALL) and not wanted.fits(CALL)
    assert Filter(status="none").fits(event(status=0))
