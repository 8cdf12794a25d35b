"""An event is whole from its beginning."""

from llm_proxy.events import OUTCOMES, Event


def new_event() -> Event:
    return Event("r1", "c1", "192.0.2.1", "ua/1.0", "POST", "/v1/chat/completions")


def test_event_of_a_call_that_got_nowhere_is_an_error_of_ours() -> None:
    event = new_event()
    assert (event.outcome, event.status, event.usage.source) == ("internal_error", 0, "none")
    assert event.outcome in OUTCOMES


def test_every_event_has_an_id_of_its_own() -> None:
    assert new_event().id != new_event().id
