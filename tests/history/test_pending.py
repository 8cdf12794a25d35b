"""What waits to be written is bounded, whatever clients call their models and however long the database is away."""

import pytest

from llm_proxy.clock import MINUTE_MS
from llm_proxy.events import Event
from llm_proxy.history import pending
from llm_proxy.history.pending import MODELS_PER_MINUTE, OTHER, Key, Pending

MINUTE = 1_795_251_240_000


def event(model: str | None = "gpt-4o", *, project: str | None = "p1", at: int = MINUTE, seconds: float = 0.0) -> Event:
    made = Event("r1", None, None, None, "POST", "/v1/chat/completions", started_at=at, duration=seconds)
    made.project_id, made.provider, made.model, made.status = project, "openai", model, 200
    return made


def losses() -> tuple[Pending, list[int]]:
    lost: list[int] = []
    return Pending(lost.append), lost


def calls(waiting: Pending) -> dict[str, int]:
    """Calls by model."""
    found: dict[str, int] = {}
    for key, values in waiting.rows().items():
        found[key.model] = found.get(key.model, 0) + values[0]
    return found


@pytest.mark.parametrize(
    ("at", "seconds", "minute"),
    [
        (MINUTE, 0.0, MINUTE),
        (MINUTE + MINUTE_MS - 1, 0.0, MINUTE),
        (MINUTE + MINUTE_MS - 1, 0.001, MINUTE + MINUTE_MS),
        (MINUTE, 3600.0, MINUTE + 60 * MINUTE_MS),
    ],
)
def test_a_call_counts_in_the_minute_in_which_it_ended(at: int, seconds: float, minute: int) -> None:
    waiting, _ = losses()
    waiting.add(event(at=at, seconds=seconds))
    assert list(waiting.rows()) == [Key(minute, "p1", "openai", "gpt-4o")]


def test_calls_without_project_provider_and_model_have_a_row_of_their_own() -> None:
    waiting, _ = losses()
    for _ in range(2):
        waiting.add(Event("r1", None, None, None, "GET", "/", started_at=MINUTE))
    assert {key: values[0] for key, values in waiting.rows().items()} == {Key(MINUTE, "", "", ""): 2}


def test_models_of_a_project_and_minute_are_told_apart_up_to_a_bound() -> None:
    waiting, lost = losses()
    for _ in range(2):
        for number in range(MODELS_PER_MINUTE + 20):
            waiting.add(event(f"m{number}"))
        waiting.take()
        waiting.settle({})
    for number in range(MODELS_PER_MINUTE + 20):
        waiting.add(event(f"m{number}"))
    waiting.add(event("a", project="p2"))
    waiting.add(event(None))
    found = calls(waiting)
    assert found.pop(OTHER) == 20, "writing in between does not make room for more"
    assert found == {**{f"m{number}": 1 for number in range(MODELS_PER_MINUTE)}, "a": 1, "": 1}
    waiting.add(event("new", at=MINUTE + MINUTE_MS))
    assert calls(waiting)["new"] == 1 and lost == []


def test_names_are_cut_and_made_storable() -> None:
    waiting, _ = losses()
    waiting.add(event("a\0b"))
    for _ in range(2):
        waiting.add(event("x" * 400))
    assert calls(waiting) == {"a?b": 1, "x" * 256: 2}


def test_above_the_bound_calls_go_to_rows_that_are_there_and_others_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST_ROWS", 3)
    waiting, lost = losses()
    for model in ("a", "b", OTHER):
        waiting.add(event(model))
    for model in ("c", "d", "a"):
        waiting.add(event(model))
    waiting.add(event("a", project="p2"))
    assert calls(waiting) == {"a": 2, "b": 1, OTHER: 3} and lost == [1]


def test_rows_on_their_way_count_towards_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST_ROWS", 3)
    waiting, lost = losses()
    for attempt in range(5):
        for number in range(3):
            waiting.add(event(f"m{number}"))
        taken = waiting.take()
        waiting.add(event(f"new{attempt}"))
        waiting.settle(taken)
        assert len(waiting) == 3
    assert calls(waiting) == {f"m{number}": 5 for number in range(3)} and lost == [1] * 5


def test_what_was_not_written_is_added_to_what_came_meanwhile() -> None:
    waiting, _ = losses()
    waiting.add(event())
    taken = waiting.take()
    waiting.add(event())
    waiting.settle(taken)
    assert calls(waiting) == {"gpt-4o": 2}
    waiting.lose(waiting.take().values())


def test_calls_of_rows_that_cannot_be_written_are_counted_as_lost() -> None:
    waiting, lost = losses()
    for model in ("a", "a", "b"):
        waiting.add(event(model))
    waiting.lose(waiting.take().values())
    assert lost == [3]
