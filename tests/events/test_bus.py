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
    with bus.subscribed() as queue:
        bus.publish(event(1))
        assert queue.qsize() == len(seen) == 1
    [record] = caplog.records
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)
    assert seen[0].id in record.getMessage()


async def test_subscriber_gets_events_while_it_is_subscribed() -> None:
    bus = Bus()
    bus.publish(event(0))
    with bus.subscribed() as one, bus.subscribed() as two:
        bus.publish(event(1))
        waiting = asyncio.gather(one.get(), two.get())
        assert [got.request_id for got in await asyncio.wait_for(waiting, 5)] == ["r1", "r1"]
    bus.publish(event(2))
    assert one.empty() and two.empty()


def test_slow_subscriber_misses_events_that_are_counted_but_others_do_not() -> None:
    bus = Bus()
    with bus.subscribed(2) as slow, bus.subscribed(10) as quick:
        for number in range(5):
            bus.publish(event(number))
        assert (slow.qsize(), quick.qsize(), bus.dropped) == (2, 5, 3)
        assert slow.get_nowait().request_id == "r0"


def test_subscription_ends_with_its_block_even_by_an_exception() -> None:
    bus = Bus()
    with pytest.raises(RuntimeError), bus.subscribed(1) as queue:
        raise RuntimeError
    bus.publish(event(1))
    assert queue.empty()
    assert bus.dropped == 0


def test_the_bus_says_how_much_waits_for_a_subscriber_that_does_not() -> None:
    bus = Bus(3)
    with bus.subscribed() as queue, bus.subscribed(5) as larger:
        for number in range(9):
            bus.publish(event(number))
        assert (queue.qsize(), larger.qsize()) == (3, 5)


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
