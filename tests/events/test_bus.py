"""Every event reaches everyone who wants it, whatever befalls another."""

import asyncio
import logging

import pytest

from llm_proxy.events import Event
from llm_proxy.events.bus import FEW, Bus


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


async def test_late_readers_get_each_event_once_within_a_moment() -> None:
    bus, seen, parts = Bus(), [], []
    done = asyncio.Event()
    bus.read_late_by(lambda event: seen.append(event.request_id), then=lambda: (parts.append(len(seen)), done.set()))
    bus.publish(event(0))
    bus.publish(event(1))
    assert seen == []
    await asyncio.wait_for(done.wait(), 5)
    assert (seen, parts) == (["r0", "r1"], [2])


async def test_late_readers_do_not_wait_for_more_than_a_few() -> None:
    bus, seen = Bus(), []
    bus.read_late_by(seen.append)
    for number in range(FEW):
        bus.publish(event(number))
    assert seen == []
    await asyncio.sleep(0)
    assert len(seen) == FEW


async def test_catching_up_leaves_nothing_to_read() -> None:
    bus, seen, parts = Bus(), [], []
    bus.read_late_by(seen.append, then=lambda: parts.append(len(seen)))
    bus.publish(event(0))
    bus.catch_up()
    bus.catch_up()
    assert (len(seen), parts) == (1, [1])


async def test_late_reader_that_fails_costs_nobody_the_event(caplog: pytest.LogCaptureFixture) -> None:
    bus, one, two = Bus(), [], []

    def fail_once(event: Event) -> None:
        if not caplog.records:
            raise RuntimeError("broken")
        one.append(event.request_id)

    bus.read_late_by(fail_once)
    bus.read_late_by(lambda event: two.append(event.request_id))
    bus.publish(event(0))
    bus.publish(event(1))
    bus.catch_up()
    assert (one, two, len(caplog.records)) == (["r1"], ["r0", "r1"], 1)
