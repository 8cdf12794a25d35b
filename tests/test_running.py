"""A change finds the running calls that it may end."""

from dataclasses import dataclass, field

import pytest

from llm_proxy.changes import Change
from llm_proxy.errors import ApiError
from llm_proxy.events import Event
from llm_proxy.running import RunningCalls


@dataclass(eq=False)
class Call:
    """A call that remembers how it was ended."""

    token_id: str
    project_id: str
    event: Event = field(default_factory=lambda: Event("r", None, None, None, "GET", "/"))
    token_kind: str = "token"
    streams: bool = False
    sent_bytes: int = 0
    ended: list[ApiError] = field(default_factory=list)

    def elapsed(self) -> float:
        return 0.0

    def end(self, error: ApiError) -> None:
        self.ended.append(error)


@pytest.fixture
def calls() -> list[Call]:
    return [Call("t1", "p1"), Call("t1", "p1"), Call("t2", "p1"), Call("t3", "p2")]


@pytest.fixture
def running(calls: list[Call]) -> RunningCalls:
    running = RunningCalls()
    for call in calls:
        running.add(call)
    return running


@pytest.mark.parametrize(
    ("change", "places"),
    [
        (Change("token", "t1"), [0, 1]),
        (Change("token", "t9"), []),
        (Change("project", "p1"), [0, 1, 2]),
        (Change("provider", "p1"), []),
        (Change("everything", ""), [0, 1, 2, 3]),
    ],
)
def test_change_concerns_calls_of_its_token_or_project(
    running: RunningCalls, calls: list[Call], change: Change, places: list[int]
) -> None:
    found = running.concerned_by(change)
    assert {id(call) for call in found} == {id(calls[place]) for place in places}


def test_call_that_ended_is_not_concerned_any_more(running: RunningCalls, calls: list[Call]) -> None:
    running.remove(calls[3])
    running.remove(calls[3])
    assert len(running) == 3
    assert running.concerned_by(Change("token", "t3")) == []


def test_calls_are_found_by_the_id_of_their_event_while_they_run(running: RunningCalls, calls: list[Call]) -> None:
    assert [running.get(call.event.id) for call in calls] == calls
    running.remove(calls[0])
    assert running.get(calls[0].event.id) is None
    assert running.longest() == calls[1:]


def test_end_all_tells_each_call_why_even_as_they_leave(running: RunningCalls, calls: list[Call]) -> None:
    error = ApiError("shutting_down", "Try again.")
    for call in calls:
        call.end = lambda told, call=call: (call.ended.append(told), running.remove(call))  # type: ignore[method-assign,assignment]
    running.end_all(error)
    assert [call.ended for call in calls] == [[error]] * 4
    assert len(running) == 0
