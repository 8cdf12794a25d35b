"""The tee learns what a reply says whichever way it is cut or coded, and no reply can make it fail or swell."""

import functools
import gzip
import itertools
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm_proxy import sse
from llm_proxy.proxy import tee as tee_module
from llm_proxy.proxy.tee import BATCH, KEEP, LARGEST_INFLATED, MOST_INFLATED_LINES, MOST_MEMBERS, TAIL, Inflater, Tee
from llm_proxy.usage import NO_USAGE, Usage

# No test may depend on how busy the machine is.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

EVENTS = "text/event-stream; charset=utf-8"
JSON = "application/json"

OPENAI = (
    b'data: {"id":"c","model":"gpt-4o","choices":[{"delta":{"content":"h\xc3\xa9"}}],"usage":null}\n\n'
    b": keep-alive\n\n"
    b'data: {"id":"c","model":"gpt-4o","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}\n\n'
    b"data: [DONE]\n\n"
)
ANTHROPIC = (
    b'event: message_start\r\ndata: {"type":"message_start","message":{"model":"claude-x",'
    b'"usage":{"input_tokens":3,"cache_read_input_tokens":4,"output_tokens":1}}}\r\n\r\n'
    b'event: message_delta\r\ndata: {"type":"message_delta","usage":{"output_tokens":8}}\r\n\r\n'
    b'event: message_stop\r\ndata: {"type":"message_stop"}\r\n\r\n'
)
RESPONSES = (
    b'event: response.created\rdata: {"type":"response.created","response":{"model":"gpt-5","usage":null}}\r\r'
    b'event: response.completed\rdata: {"type":"response.completed",\r'
    b'data: "response":{"model":"gpt-5","usage":{"input_tokens":5,"output_tokens":6,"total_tokens":11}}}\r\r'
)
STREAMS = {
    "openai-LF": (OPENAI, Usage(9, 2, 11, source="provider"), "gpt-4o"),
    "anthropic-CRLF": (ANTHROPIC, Usage(7, 8, 15, 4, source="provider"), "claude-x"),
    "responses-CR": (RESPONSES, Usage(5, 6, 11, source="provider"), "gpt-5"),
}
STATED = b'"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}'
REPLY = b'{"id":"c","model":"gpt-4o","choices":[{"message":{"content":"hi"}}],' + STATED + b"}"
SAID = Usage(9, 2, 11, source="provider")


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def in_members(data: bytes) -> bytes:
    return b"".join(gzip.compress(data[at : at + 50], mtime=0) for at in range(0, len(data), 50))


def flushed(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    return b"".join(packer.compress(data[at : at + 40]) + packer.flush(zlib.Z_SYNC_FLUSH) for at in range(0, len(data), 40))


CODINGS = {
    "uncoded": ("", bytes),
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "x-gzip": (" X-GZIP ", gzip.compress),
    "gzip-members": ("gzip", in_members),
    "gzip-flushed-unfinished": ("GZip", flushed),
    "gzip-padded": ("gzip", lambda data: gzip.compress(data, mtime=0) + bytes(9)),
    "deflate-zlib": ("deflate", zlib.compress),
    "deflate-zlib-fastest": ("deflate", lambda data: zlib.compress(data, 1)),
    "deflate-zlib-stored": ("deflate", lambda data: zlib.compress(data, 0)),
    "deflate-raw": ("deflate", raw_deflate),
    "deflate-with-junk-behind": ("deflate", lambda data: zlib.compress(data) + b"junk"),
}


def pieces(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    return (data[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(data)]))


def watched(content_type: str, coding: str, chunks: Iterable[bytes], keep: int = KEEP) -> Tee:
    tee = Tee(content_type, coding, keep)
    for chunk in chunks:
        tee.feed(chunk)
    return tee


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("name", STREAMS)
@unhurried
@given(st.data())
@example(None)
def test_for_every_cut_of_every_coding_a_stream_tells_the_same(name: str, coding: str, data: st.DataObject | None) -> None:
    stream, usage, model = STREAMS[name]
    header, encode = CODINGS[coding]
    sent = encode(stream)
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=12)) if data else range(len(sent))
    tee = watched(EVENTS, header, pieces(sent, cuts))
    assert (tee.usage(), tee.model, tee.finished, tee.kept) == (usage, model, True, stream)


@pytest.mark.parametrize("name", STREAMS)
def test_a_truncated_stream_tells_what_its_whole_events_said(name: str) -> None:
    stream, usage, _ = STREAMS[name]
    sent = gzip.compress(stream, mtime=0)
    seen = []
    for end in range(len(sent) + 1):
        decoded = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(sent[:end])
        tee = watched(EVENTS, "gzip", [sent[:end]])
        assert tee.kept == decoded
        assert tee.usage() == watched(EVENTS, "", [decoded]).usage()
        seen.append(tee.usage())
    assert (seen[0], seen[-1]) == (NO_USAGE, usage)


@pytest.mark.parametrize("coding", CODINGS)
@unhurried
@given(st.data())
def test_for_every_cut_of_every_coding_a_json_reply_tells_the_same(coding: str, data: st.DataObject) -> None:
    header, encode = CODINGS[coding]
    sent = encode(REPLY)
    tee = watched(JSON, header, pieces(sent, data.draw(st.lists(st.integers(0, len(sent)), max_size=12))))
    assert (tee.usage(), tee.model, tee.kept) == (SAID, "gpt-4o", REPLY)


@pytest.mark.parametrize(
    ("content_type", "is_json"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/problem+json", True),
        ("application/jsonl", False),
        ("text/plain", False),
        ("", False),
    ],
)
def test_usage_is_looked_for_in_json_only(content_type: str, is_json: bool) -> None:
    tee = watched(content_type, "", [REPLY])
    assert tee.kept == REPLY
    assert (tee.usage(), tee.model) == ((SAID, "gpt-4o") if is_json else (NO_USAGE, None))
    assert not tee.is_event_stream


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip, deflate", "compress", "nonsense"])
@pytest.mark.parametrize("content_type", [EVENTS, JSON])
def test_nothing_is_learned_of_other_codings(content_type: str, coding: str) -> None:
    body = OPENAI if content_type == EVENTS else REPLY
    tee = watched(content_type, coding, [body])
    assert (tee.usage(), tee.model, tee.kept, tee.at_boundary) == (NO_USAGE, None, b"", False)


@pytest.mark.parametrize(
    ("content_type", "coding", "sent", "is_event_stream", "at_boundary"),
    [
        ("text/event-stream", "", b"", True, True),
        ("Text/Event-Stream;charset=utf-8", "identity", b"data: 1\n\n", True, True),
        ("text/event-stream", "", b"data: 1\n", True, False),
        ("text/event-stream", "gzip", b"", True, False),
        ("text/event-stream", "gzip", gzip.compress(b"data: 1\n\n", mtime=0), True, False),
        ("text/event-stream", "br", b"", True, False),
        ("application/json", "", b"", False, False),
        ("text/event-streams", "", b"", False, False),
    ],
)
def test_only_an_uncoded_stream_of_events_has_boundaries(
    content_type: str, coding: str, sent: bytes, is_event_stream: bool, at_boundary: bool
) -> None:
    tee = watched(content_type, coding, [sent])
    assert (tee.is_event_stream, tee.at_boundary) == (is_event_stream, at_boundary)
    assert tee.is_uncoded == (coding in ("", "identity"))


@pytest.mark.parametrize("before", [b"", b": keep-alive\n\n" * (BATCH // 10)], ids=["short", "long"])
@pytest.mark.parametrize(
    ("ask", "said"),
    [
        pytest.param(lambda tee: tee.usage(), SAID, id="usage"),
        pytest.param(lambda tee: tee.model, "gpt-4o", id="model"),
        pytest.param(lambda tee: tee.finished, True, id="finished"),
        pytest.param(lambda tee: tee.at_boundary, True, id="boundary"),
        pytest.param(lambda tee: tee.kept[-len(OPENAI) :], OPENAI, id="kept"),
        pytest.param(lambda tee: list(tee.payloads())[-1], b"[DONE]", id="payloads"),
    ],
)
def test_who_asks_hears_of_all_that_came_though_it_is_looked_at_later(
    ask: Callable[[Tee], object], said: object, before: bytes
) -> None:
    stream = before + OPENAI
    tee = watched(EVENTS, "", pieces(stream, range(0, len(stream), 100)))
    assert ask(tee) == said


def test_usage_may_be_asked_for_at_any_moment() -> None:
    tee = Tee(JSON, "")
    half = len(REPLY) // 2
    tee.feed(REPLY[:half])
    assert (tee.usage(), tee.model) == (NO_USAGE, None)
    tee.feed(REPLY[half:])
    assert (tee.usage(), tee.model) == (SAID, "gpt-4o")

    tee = watched(EVENTS, "", [ANTHROPIC[: ANTHROPIC.index(b"event: message_delta")]])
    assert (tee.usage(), tee.finished) == (Usage(7, 1, 8, 4, source="provider"), False)


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("content_type", [EVENTS, JSON, "audio/mpeg"])
@pytest.mark.parametrize("keep", [0, 1, 999, 1000, 1001])
@pytest.mark.parametrize("size", [1, 300, 5000])
def test_the_beginning_is_kept_and_no_more(size: int, keep: int, content_type: str, coding: str) -> None:
    body = bytes(itertools.islice(itertools.cycle(b"abcdefghij\n"), 1000))
    sent = gzip.compress(body, mtime=0) if coding else body
    tee = watched(content_type, coding, (sent[at : at + size] for at in range(0, len(sent), size)), keep)
    assert tee.kept == body[:keep]


EMBEDDINGS = (
    b'{"object":"list","data":[' + b",".join([b'{"embedding":[0.123,-0.456],"usage":{"total_tokens":1}}'] * 20_000) + b"],"
)
NESTED = b'"extra":[{"model":"inner","usage":{"prompt_tokens":77}}]'
TEXT = json.dumps({"content": '"usage": {"prompt_tokens": 88}, "model": "said"'}).encode()[1:-1]


@pytest.mark.parametrize(
    ("end", "usage", "model"),
    [
        pytest.param(b'"model":"embed-3",' + STATED + b"}", SAID, "embed-3", id="model-then-usage"),
        pytest.param(STATED + b',"model":"embed-3"}', SAID, "embed-3", id="usage-then-model"),
        pytest.param(STATED + b', "model" : "embed-3" , ' + NESTED + b" }\n", SAID, "embed-3", id="nested-ones-behind"),
        pytest.param(NESTED + b"," + STATED + b"}", SAID, None, id="nested-ones-before"),
        pytest.param(TEXT + b"," + STATED + b"," + TEXT + b"}", SAID, None, id="spoken-of-in-text"),
        pytest.param(STATED + b',"text":"' + b"x" * 15_000 + b'"}', SAID, None, id="far-from-the-end"),
        pytest.param(STATED + b',"text":"' + b"x" * TAIL + b'"}', NO_USAGE, None, id="too-far-from-the-end"),
        pytest.param(NESTED + b"}", NO_USAGE, None, id="only-nested-ones"),
        pytest.param(STATED, NO_USAGE, None, id="broken-off"),
        pytest.param(b'"usage":null}', NO_USAGE, None, id="null"),
        pytest.param(b'"usage":{"prompt_tokens":-1}}', NO_USAGE, None, id="nonsense"),
        pytest.param(STATED + b',"x":[' + b'{"model":"m"},' * 7 + b"0]}", SAID, None, id="before-some-other-keys"),
        pytest.param(STATED + b',"x":[' + b'{"model":"m"},' * 8 + b"0]}", NO_USAGE, None, id="before-too-many-other-keys"),
        pytest.param(b'"usage":' * 3000 + b"1}", NO_USAGE, None, id="many-keys"),
        pytest.param(b'"usage":' + b'{"usage":' * 1500 + b"1" + b"}" * 1501, NO_USAGE, None, id="deep"),
    ],
)
@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("size", [700, 50_000, 10**8])
def test_usage_is_found_at_the_end_of_a_long_reply(size: int, coding: str, end: bytes, usage: Usage, model: str | None) -> None:
    body = EMBEDDINGS + end
    sent = gzip.compress(body, 1, mtime=0) if coding else body
    tee = watched(JSON, coding, (sent[at : at + size] for at in range(0, len(sent), size)))
    assert (tee.usage(), tee.model) == (usage, model)
    assert len(tee.kept) == KEEP


@pytest.mark.parametrize(
    ("model", "read"),
    [(b'"gpt-4o"', "gpt-4o"), (b'"g\\u0070t"', "gpt"), (b'"\\ud800"', None), (b'"\xff"', None), (b"7", None), (b'""', None)],
)
def test_the_model_is_found_at_the_beginning_of_a_long_reply(model: bytes, read: str | None) -> None:
    body = b'{"id": "c", "model": ' + model + b', "choices": "' + b"x" * 300_000 + b'", ' + STATED + b"}"
    tee = watched(JSON, "", [body])
    assert (tee.usage(), tee.model) == (SAID, read)


@pytest.mark.parametrize("over", [1, 30, 31, 100, TAIL - 1, TAIL, TAIL + 1])
def test_usage_is_found_where_the_end_lies_partly_in_what_is_kept(over: int) -> None:
    body = b'{"text":"' + b"x" * 50_000 + b'",' + STATED + b"}"
    assert watched(JSON, "", pieces(body, range(0, len(body), 7)), len(body) - over).usage() == SAID


@functools.cache
def bomb(size: int, wbits: int = 16 + zlib.MAX_WBITS, filler: bytes = b"\0", first: bytes = b"") -> bytes:
    packer = zlib.compressobj(9, wbits=wbits)
    block = filler * (512 * 1024 // len(filler))
    return b"".join([packer.compress(first), *(packer.compress(block) for _ in range(size // len(block))), packer.flush()])


@pytest.mark.parametrize("size", [100, 4096, 10**8])
@pytest.mark.parametrize(("coding", "wbits"), [("gzip", 31), ("deflate", 15), ("deflate", -15)], ids=["gzip", "zlib", "raw"])
def test_a_bomb_of_200_mebibytes_is_inflated_to_eight(coding: str, wbits: int, size: int) -> None:
    sent = bomb(200 * 1024 * 1024, wbits)
    inflater = Inflater(coding, LARGEST_INFLATED)
    inflated = [len(piece) for at in range(0, len(sent), size) for piece in inflater.feed(sent[at : at + size])]
    assert sum(inflated) == LARGEST_INFLATED
    assert max(inflated) <= 64 * 1024
    assert inflater.stopped
    assert list(inflater.feed(sent)) == []


@pytest.mark.parametrize("size", [4096, 10**8])
@pytest.mark.parametrize("filler", [b"\0", b"data: 0123456789\n\n", b"data: x\n"], ids=["zeros", "events", "one-event"])
@pytest.mark.parametrize("content_type", [EVENTS, JSON, "image/png"])
def test_a_bomb_costs_little_memory(content_type: str, filler: bytes, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every bound is a quarter of what it is, since counting memory takes its time.
    for module, name in ((tee_module, "LARGEST_INFLATED"), (tee_module, "MOST_INFLATED_LINES"), (sse, "LARGEST_EVENT")):
        monkeypatch.setattr(module, name, getattr(module, name) // 4)
    sent = bomb(5 * 1024 * 1024, filler=filler)
    tee = Tee(content_type, "gzip", KEEP // 4)
    tracemalloc.start()
    try:
        for at in range(0, len(sent), size):
            tee.feed(sent[at : at + size])
        assert tee.usage() == NO_USAGE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 1024 * 1024 // 4
    assert len(tee.kept) == KEEP // 4


def test_a_long_reply_costs_little_memory() -> None:
    tee = Tee(JSON, "")
    chunk = b"x" * 50_000
    tracemalloc.start()
    try:
        for _ in range(500):
            tee.feed(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


@pytest.mark.parametrize("wbits", [31, 15, -15], ids=["gzip", "zlib", "raw"])
def test_wherever_a_coded_reply_breaks_off_all_that_came_of_it_is_inflated(wbits: int) -> None:
    sent = bomb(512 * 1024, wbits)
    for end in range(len(sent) + 1):
        inflater = Inflater("gzip" if wbits == 31 else "deflate", LARGEST_INFLATED)
        inflated = sum(map(len, inflater.feed(sent[:end])))
        assert inflated == len(zlib.decompressobj(wbits).decompress(sent[:end]))


def test_what_came_before_the_bomb_is_still_known() -> None:
    tee = watched(EVENTS, "gzip", [bomb(20 * 1024 * 1024, filler=b": " + b"x" * 1022, first=ANTHROPIC)])
    assert (tee.usage(), tee.model) == (Usage(7, 8, 15, 4, source="provider"), "claude-x")


@pytest.mark.parametrize(
    ("before", "seen"),
    [
        pytest.param((b":" + b"x" * 1000 + b"\n\n") * (LARGEST_INFLATED // 1003 - 10), True, id="8-MiB-less-a-little"),
        pytest.param((b":" + b"x" * 1000 + b"\n\n") * (LARGEST_INFLATED // 1003 + 1), False, id="over-8-MiB"),
        pytest.param(b"\n" * (MOST_INFLATED_LINES - 20), True, id="many-lines"),
        pytest.param(b"\n" * MOST_INFLATED_LINES, False, id="too-many-lines"),
        pytest.param(b"\r" * MOST_INFLATED_LINES, False, id="too-many-CRs"),
    ],
)
def test_inspection_of_a_coded_stream_ends_for_good_at_its_bounds(before: bytes, seen: bool) -> None:
    sent = gzip.compress(before, mtime=0) + gzip.compress(OPENAI)
    tee = watched(EVENTS, "gzip", [sent, gzip.compress(OPENAI, mtime=0)])
    assert tee.finished is seen
    assert (tee.usage() == SAID) is seen


def test_an_uncoded_stream_is_read_however_long_it_is() -> None:
    tee = watched(EVENTS, "", [b"\n" * MOST_INFLATED_LINES, *[b": " + b"x" * 1_000_000 + b"\n\n"] * 10, OPENAI])
    assert (tee.usage(), tee.finished) == (SAID, True)


def test_a_bomb_of_gzip_members_is_bounded_too() -> None:
    few, many = gzip.compress(b"", mtime=0) * (MOST_MEMBERS - 1), gzip.compress(b"") * MOST_MEMBERS
    assert watched(JSON, "gzip", [few, gzip.compress(REPLY, mtime=0)]).usage() == SAID
    assert watched(JSON, "gzip", [many, gzip.compress(REPLY, mtime=0)]).usage() == NO_USAGE


def test_what_is_not_read_is_inflated_no_further_than_it_is_kept() -> None:
    tee = Tee("image/png", "gzip", keep=1000)
    tee.feed(bomb(1024 * 1024))
    assert tee.kept == bytes(1000)
    assert tee._inflater is not None
    assert tee._inflater.stopped


def test_a_broken_coding_ends_the_inspection_only() -> None:
    sent = bytearray(gzip.compress(OPENAI, mtime=0))
    sent[len(sent) // 2 :] = b"\xff" * 50
    tee = watched(EVENTS, "gzip", [bytes(sent[:20]), bytes(sent[20:]), gzip.compress(OPENAI, mtime=0)])
    assert tee.usage() == NO_USAGE


@pytest.mark.parametrize("size", [1000, 10**8])
def test_an_event_of_ten_megabytes_does_not_hide_the_usage_behind_it(size: int) -> None:
    body = b'data: {"content":"' + b"x" * 10_000_000 + b'"}\n\n' + OPENAI
    tee = watched(EVENTS, "", (body[at : at + size] for at in range(0, len(body), size)))
    assert (tee.usage(), tee.model, tee.finished) == (SAID, "gpt-4o", True)


@unhurried
@given(
    st.sampled_from([EVENTS, JSON, "application/ld+json", "", ";;", "text/html"]),
    st.sampled_from(["", "gzip", "deflate", "br", ",", "\x00"]) | st.text(max_size=5),
    st.lists(
        st.binary(max_size=40) | st.sampled_from([gzip.compress(OPENAI, mtime=0), zlib.compress(REPLY), OPENAI, REPLY]),
        max_size=6,
    ),
    st.integers(0, 100),
)
def test_whatever_comes_the_tee_does_not_fail(content_type: str, coding: str, chunks: list[bytes], keep: int) -> None:
    tee = Tee(content_type, coding, keep)
    for chunk in chunks:
        tee.feed(chunk)
        assert tee.usage().source in ("provider", "none")
        assert tee.model in (None, "gpt-4o")
        assert len(tee.kept) <= keep
        assert tee.at_boundary in (True, False)
