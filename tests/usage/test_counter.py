"""Counting goes on in its thread, shared fairly, bounded, and its failures are none of the calls'."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest

from llm_proxy.usage import NO_USAGE, Usage
from llm_proxy.usage.counter import BATCH, LARGEST_BACKLOG, LARGEST_REQUEST, Counter, Counting
from llm_proxy.usage.encodings import Encoder

LONG = 10.0


def words(text: str) -> int:
    """A tokenizer whose tokens are words."""
    return len(text.split())


def request(*contents: str) -> bytes:
    return orjson.dumps({"messages": [{"role": "user", "content": content} for content in contents]})


def chunk(content: str, index: int = 0) -> bytes:
    return orjson.dumps({"choices": [{"index": index, "delta": {"content": content}}]})


def counted(prompt: int, completion: int) -> Usage:
    return Usage(prompt, completion, prompt + completion, source="counted")


@pytest.fixture
def counting() -> Iterator[Counting]:
    opened = Counting(lambda name: words)
    yield opened
    opened.close()


async def idle(counter: Counter) -> None:
    async with asyncio.timeout(LONG):
        while counter._busy:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_call_is_counted_as_it_passes(counting: Counting) -> None:
    counter = counting.counter("gpt-4o", request("one two", "three"))
    counter.start()
    for _ in range(1000):
        counter.feed(chunk("word "))
    counter.feed(b"[DONE]")
    await counter.settle(LONG)
    assert counter.usage() == counted(2 * 3 + 2 + 3 + 3, 1000)
    assert counting.backlog == 0


async def test_a_reply_that_is_at_hand_as_a_whole_is_counted_at_its_end(counting: Counting) -> None:
    counter = counting.counter("gpt-4o", request("one"))
    await counter.settle(LONG, (chunk(text) for text in ("a b", " c")))
    assert counter.usage() == counted(3 + 1 + 1 + 3, 3)


async def test_a_call_that_ends_early_has_used_what_it_was_told_so_far(counting: Counting) -> None:
    counter = counting.counter("gpt-4o", request("one"))
    counter.start()
    counter.feed(chunk("a b c"))
    assert len(chunk("a b c")) < BATCH
    await idle(counter)
    assert counter.usage() == counted(8, 3)
    counter.drop()
    assert counter.usage() == NO_USAGE


@pytest.mark.parametrize("payloads", [[], [b'{"error": {"message": "overloaded"}}']], ids=["nothing", "an-error"])
async def test_a_reply_without_choices_is_not_counted(counting: Counting, payloads: list[bytes]) -> None:
    counter = counting.counter("gpt-4o", request("one"))
    counter.start()
    for payload in payloads:
        counter.feed(payload)
    await idle(counter)
    assert counter.usage() == NO_USAGE
    await counter.settle(LONG)
    assert counter.usage() == NO_USAGE


@pytest.mark.parametrize(
    "body", [b"no json", request("a" * LARGEST_REQUEST), b'{"input": "one"}'], ids=["no-json", "too-large", "no-chat"]
)
async def test_what_cannot_be_counted_has_no_usage(counting: Counting, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    counter = counting.counter("gpt-4o", body)
    counter.start()
    counter.feed(chunk("a" * BATCH))
    await counter.settle(LONG)
    assert counter.usage() == NO_USAGE
    assert counting.backlog == 0 and not caplog.records


class Panic(BaseException):
    """As the tokenizer's own language raises it."""


@pytest.mark.parametrize("error", [OSError("no table"), Panic("out of stack")], ids=["error", "panic"])
async def test_a_failure_is_said_once(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def fail(name: str) -> Encoder:
        raise error

    counting = Counting(fail)
    for _ in range(3):
        counter = counting.counter("gpt-4o", request("one"))
        counter.start()
        counter.feed(chunk("a" * BATCH))
        await counter.settle(LONG)
        assert counter.usage() == NO_USAGE
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    counting.close()


@pytest.fixture
async def stuck() -> AsyncIterator[Counting]:
    """A counting whose tokenizer does not come back while the test runs."""
    release = threading.Event()

    def hang(name: str) -> Encoder:
        release.wait(LONG)
        return words

    counting = Counting(hang)
    yield counting
    release.set()
    counting.close()


async def test_a_call_waits_no_longer_than_it_may(stuck: Counting) -> None:
    counter = stuck.counter("gpt-4o", request("one"))
    counter.start()
    counter.feed(chunk("a"))
    began = time.monotonic()
    await counter.settle(0.02)
    assert 0.015 < time.monotonic() - began < 1
    assert counter.usage() == NO_USAGE


async def test_what_waits_for_the_thread_is_bounded(stuck: Counting) -> None:
    counter, piece = stuck.counter("gpt-4o", request("one")), chunk("a" * BATCH)
    counter.start()
    for _ in range(LARGEST_BACKLOG // len(piece)):
        counter.feed(piece)
    assert LARGEST_BACKLOG - len(piece) < stuck.backlog <= LARGEST_BACKLOG
    counter.feed(piece)
    counter.feed(piece)
    assert stuck.backlog == 0
    began = time.monotonic()
    await counter.settle(LONG)
    assert time.monotonic() - began < LONG / 2
    assert counter.usage() == NO_USAGE


async def test_a_long_prompt_keeps_no_other_call_waiting() -> None:
    def slow(text: str) -> int:
        time.sleep(0.001)
        return words(text)

    counting = Counting(lambda name: slow)
    long = counting.counter("gpt-4o", request("word " * 800_000))
    long.start()
    short = counting.counter("gpt-4o", request("one"))
    short.start()
    short.feed(chunk("a"))
    await short.settle(LONG)
    assert short.usage() == counted(8, 1)
    assert long._busy
    long.drop()
    counting.close()


async def test_a_stopped_process_counts_nothing_more(counting: Counting) -> None:
    counting.close()
    counter = counting.counter("gpt-4o", request("one"))
    counter.start()
    await counter.settle(0.001)
    assert counter.usage() == NO_USAGE


def test_a_provider_is_expected_to_do_what_it_did_before(counting: Counting) -> None:
    assert counting.expects_usage("a", asked=True) and not counting.expects_usage("a", asked=False)
    counting.learn("a", asked=True, stated=False)
    counting.learn("b", asked=False, stated=True)
    assert not counting.expects_usage("a", asked=True)
    assert counting.expects_usage("b", asked=True) and counting.expects_usage("b", asked=False)
    assert not counting.expects_usage("a", asked=False)
