"""Every event reaches everyone who wants it, whatever befalls another."""

import logging

import pytest

from llm_proxy.events import Event
from llm_proxy.events.bus import Bus


def event(number: int) -> Event:
    return Event(f"r{number}", None, None, None, "GET", "/")


def test_readers_are_called_at_once_in_order() -> None:
    bus, seen = Bus(), []
    bus.read_by(lambda event: seen.append(("a", event.request_id)))
    bus.read_by(lambda event: seen.append(("b", event.request_id)))
    bus.publish(event(1))
    assert seen == [("a", "r1"), ("b", "r1")]


def test_reader_that_fails_costs_nobody_the_event(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("broken")

    bus, seen = Bus(), []
    bus.read_by(fail)
    bus.read_by(seen.append)
    bus.publish(event(1))
    assert len(seen) == 1
    [record] = caplog.records
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)
    assert seen[0].id in record.getMessage()
