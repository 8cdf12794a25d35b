"""The splitter finds the events of a stream whichever way its bytes are cut."""

import itertools
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from llm_proxy import sse
from llm_proxy.sse import LARGEST_EVENT, EventSplitter

Events = list[tuple[bytes, bytes]]

# No test may depend on how busy the machine is.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)

BOM = b"\xef\xbb\xbf"


def whole(stream: bytes) -> list[tuple[str, str]]:
    """The events of a stream by the text of the WHATWG, with all of it at hand."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    events: list[tuple[str, str]] = []
    data = name = ""
    for line in lines:
        field, colon, value = line.partition(":")
        if colon and value[:1] == " ":
            value = value[1:]
        if line == "":
            if data != "":
                events.append((name, data[:-1]))
            data = name = ""
        elif line[0] == ":":
            continue
        elif field == "data":
            data += value + "\n"
        elif field == "event":
            name = value
    return events


def fed(chunks: Iterable[bytes], splitter: EventSplitter | None = None) -> Events:
    splitter = splitter or EventSplitter()
    return [event for chunk in chunks for event in splitter.feed(chunk)]


def as_text(events: Events) -> list[tuple[str, str]]:
    return [(name.decode("utf-8", "replace"), data.decode("utf-8", "replace")) for name, data in events]


def pieces(stream: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    return (stream[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(stream)]))


_ENDS = [b"\n", b"\r", b"\r\n"]
_TOKENS = [
    *_ENDS,
    b"\n\n",
    b"\r\r",
    b"\r\n\r\n",
    b"data",
    b"data:",
    b"data: ",
    b"data:  two",
    b"event: ",
    b"event:name",
    b"id: 1",
    b"retry: 5",
    b": comment",
    b"database: no",
    b":",
    b" ",
    b"x",
    b"\x00",
    BOM,
    "é€😀".encode(),
    b"\xe2\x82",
    b"\xff",
    b'data: {"a": 1}\n\n',
]
STREAMS = st.lists(st.sampled_from(_TOKENS), max_size=25).map(b"".join)


@unhurried
@given(STREAMS, st.data())
@example(BOM + b"data: a\r\n\r\n", None)
def test_every_way_of_cutting_gives_the_events_of_the_whole(stream: bytes, data: st.DataObject | None) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)))) if data else range(len(stream))
    at_once, cut = EventSplitter(), EventSplitter()
    assert as_text(fed([stream], at_once)) == whole(stream)
    assert as_text(fed(pieces(stream, cuts), cut)) == whole(stream)
    assert at_once.at_boundary == cut.at_boundary


@pytest.mark.parametrize("end", _ENDS, ids=["LF", "CR", "CRLF"])
def test_all_splits_of_a_short_stream_agree(end: bytes) -> None:
    stream = b"data:1" + end + b":" + end + end
    for chosen in itertools.product([False, True], repeat=len(stream) - 1):
        cuts = [at for at, cut in enumerate(chosen, 1) if cut]
        assert fed(pieces(stream, cuts)) == [(b"", b"1")]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b'data: {"x":1}\n\n', [(b"", b'{"x":1}')], id="usual"),
        pytest.param(b"data: 1\n\ndata: 2\n\n", [(b"", b"1"), (b"", b"2")], id="two-at-once"),
        pytest.param(b"data:1\n\n", [(b"", b"1")], id="no-space"),
        pytest.param(b"data:  1 \n\n", [(b"", b" 1 ")], id="one-space-only-is-dropped"),
        pytest.param(b"event: e\ndata: 1\n\n", [(b"e", b"1")], id="named"),
        pytest.param(b"event: e\nevent: f\ndata: 1\n\ndata: 2\n\n", [(b"f", b"1"), (b"", b"2")], id="name-lasts-one-event"),
        pytest.param(b"data: 1\ndata: 2\ndata\ndata:\n\n", [(b"", b"1\n2\n\n")], id="several-lines"),
        pytest.param(b"data\n\n", [(b"", b"")], id="empty-data"),
        pytest.param(b"event: e\n\ndata: 1\n\n", [(b"", b"1")], id="no-data-is-no-event"),
        pytest.param(b": c\n\n:\n\ndata: 1\n: c\n\n", [(b"", b"1")], id="comments"),
        pytest.param(b"id: 7\nretry: 3\nfoo\nDATA: 0\n data: 0\ndata: 1\n\n", [(b"", b"1")], id="other-fields"),
        pytest.param(BOM + b"data: 1\n\n" + BOM + b"data: 2\n\n", [(b"", b"1")], id="BOM-only-at-the-start"),
        pytest.param(b"data: 1\n\n" + BOM + b"data: 2\n\n", [(b"", b"1")], id="no-BOM-after-a-plain-event"),
        pytest.param(b"data: a\rdata: b\r\ndata: c\n\r\n", [(b"", b"a\nb\nc")], id="mixed-ends"),
        pytest.param(b"data: a\x0bb\x0cc\xc2\x85d\n\n", [(b"", b"a\x0bb\x0cc\xc2\x85d")], id="other-line-separators-are-text"),
        pytest.param(b"data: 1\n\ndata: 2\n", [(b"", b"1")], id="incomplete-at-the-end"),
        pytest.param(b"data: 1\n\ndata: 2", [(b"", b"1")], id="incomplete-line-at-the-end"),
        pytest.param(b"\n\n\r\r\r\n", [], id="blank-lines-only"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_the_format_is_read_as_it_is_specified(stream: bytes, events: Events) -> None:
    assert fed([stream]) == events
    assert fed(bytes([byte]) for byte in stream) == events


@pytest.mark.parametrize(
    ("before", "events"),
    [
        pytest.param(b"", [(b"", b"2")], id="nothing"),
        pytest.param(b"data: 1\n\n", [(b"", b"1"), (b"", b"2")], id="another"),
        pytest.param(b"event: e\n", [(b"e", b"2")], id="its-name"),
        pytest.param(b"data: 1\n", [(b"", b"1\n2")], id="a-line-of-its-data"),
        pytest.param(b"data: 1\r", [(b"", b"1\n2")], id="a-line-that-ends-in-CR"),
        pytest.param(b"data: 1", [(b"", b"1data: 2")], id="half-a-line"),
        pytest.param(b": ", [], id="half-a-comment"),
        pytest.param(BOM, [(b"", b"2")], id="BOM"),
    ],
)
def test_a_chunk_that_looks_like_one_whole_event_is_read_by_what_came_before(before: bytes, events: Events) -> None:
    assert fed([before, b"data: 2\n\n"]) == events


def test_a_byte_order_mark_after_a_whole_event_is_text() -> None:
    assert fed([b"data: 1\n\n", BOM + b"data: 2\n\n"]) == [(b"", b"1")]


@pytest.mark.parametrize(
    ("chunks", "boundary"),
    [
        ([], True),
        ([b""], True),
        ([b"data: 1\n\n"], True),
        ([b"data: 1\n\n", b""], True),
        ([b"data: 1\n", b"\n"], True),
        ([b": c\n\n"], True),
        ([b"data: 1\r\n\r\n"], True),
        ([b"data: 1\r\n\r", b"\n"], True),
        ([b"data: 1\r\r"], True),
        ([b"data: 1\r\r", b"data: 2\r\r"], True),
        ([b"data: 1\n\n\n"], True),
        ([b"data: 1\r\n\r", b"data: 2\n\n"], True),
        ([b"d"], False),
        ([BOM], False),
        ([b": c\n"], False),
        ([b"event: e\n"], False),
        ([b"data: 1\n"], False),
        ([b"data: 1\n\nd"], False),
        ([b"data: 1\n\n", b"d"], False),
        ([b"data: 1\r\n"], False),
        ([b"data: 1\r", b"\n"], False),
        ([b"data: 1\r\n\r"], False),
        ([b"data: 1\r", b"\n", b"\r"], False),
        ([b"data: 1\n\n", b"data: " + b"x" * LARGEST_EVENT], False),
        ([b"data: " + b"x" * LARGEST_EVENT, b"x", b"\n", b"\n"], True),
    ],
    ids=lambda value: repr(b"|".join(value))[:40] if isinstance(value, list) else None,
)
def test_a_boundary_is_the_start_or_right_after_a_blank_line(chunks: list[bytes], boundary: bool) -> None:
    splitter = EventSplitter()
    fed(chunks, splitter)
    assert splitter.at_boundary is boundary


@unhurried
@given(STREAMS, STREAMS)
def test_an_event_put_in_at_a_boundary_leaves_the_others_as_they_are(before: bytes, after: bytes) -> None:
    splitter = EventSplitter()
    splitter.feed(before)
    # A byte order mark counts only as the very first thing, so whatever is put in before it makes it text.
    assume(splitter.at_boundary and not (before == b"" and after.startswith(BOM)))
    rest = whole(before + after)[len(whole(before)) :]
    assert whole(before + b": comment\n\n" + after) == whole(before + after)
    assert whole(before + b"data: new\n\n" + after) == [*whole(before), ("", "new"), *rest]


def in_chunks(stream: bytes, size: int) -> Iterator[bytes]:
    return (stream[at : at + size] for at in range(0, len(stream), size))


@pytest.mark.parametrize("size", [1000, 65536, 10**8])
@pytest.mark.parametrize(
    "huge",
    [
        pytest.param(b"data: " + b"x" * 10_000_000, id="one-line"),
        pytest.param(b"data: xxx\n" * 200_000 + b"data: end", id="many-lines"),
        pytest.param(b"data: 1\n:" + b"x" * 10_000_000, id="comment"),
        pytest.param(b"event: " + b"x" * 10_000_000 + b"\ndata: 1", id="name"),
    ],
)
def test_an_event_of_megabytes_is_passed_over_and_the_next_is_read(huge: bytes, size: int) -> None:
    stream = b"data: first\n\n" + huge + b"\r\n\r\nevent: e\r\ndata: next\r\n\r\n"
    splitter = EventSplitter()
    assert fed(in_chunks(stream, size), splitter) == [(b"", b"first"), (b"e", b"next")]
    assert splitter.at_boundary


@pytest.mark.parametrize(
    ("line", "most"),
    [
        pytest.param(b"x" * 100, 4, id="one-line"),
        pytest.param(b"data: x\n", 8, id="short-lines"),
        pytest.param(b"\r: x", 16, id="shorter-comments"),
    ],
)
def test_a_stream_without_blank_lines_does_not_fill_the_memory(line: bytes, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # An eighth of the bound, since counting memory takes its time.
    bound = LARGEST_EVENT // 8
    monkeypatch.setattr(sse, "LARGEST_EVENT", bound)
    splitter = EventSplitter()
    chunk = line * (2000 // 8)
    tracemalloc.start()
    try:
        for _ in range(4 * bound // len(chunk)):
            splitter.feed(chunk)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < bound
    assert peak < most * bound


@pytest.mark.parametrize("start", [b"", b"data: 1\n\n", BOM], ids=["first", "later", "after-BOM"])
@pytest.mark.parametrize("size", [1, 7, LARGEST_EVENT // 2, 2 * LARGEST_EVENT], ids=["bytes", "7", "half", "whole"])
@pytest.mark.parametrize("field", [b"data: ", b"data:", b"event: e\ndata: "], ids=["space", "no-space", "named"])
def test_the_largest_event_is_the_same_for_every_cut(field: bytes, size: int, start: bytes) -> None:
    fits = field + b"x" * (LARGEST_EVENT - len(field) - 1)
    for event, read in ((fits, True), (fits + b"x", False)):
        splitter = EventSplitter()
        splitter.feed(start)
        # Cut into single bytes only where the bound is near.
        head = len(event) - 20 if size < 20 else 0
        events = fed([event[:head], *in_chunks(event[head:] + b"\n\n", size)], splitter)
        assert [len(data) for _, data in events] == ([len(fits.partition(b"data:")[2].strip())] if read else [])


def test_lines_of_a_finished_event_do_not_count_for_one_that_begins_in_the_same_chunk() -> None:
    almost = b"data: " + b"x" * (LARGEST_EVENT - 100)
    splitter = EventSplitter()
    splitter.feed(almost + b"\n")
    events = splitter.feed(b"\ndata: " + b"y" * 1000)
    assert [len(data) for _, data in events] == [LARGEST_EVENT - 100]
    assert splitter.feed(b"\n\n") == [(b"", b"y" * 1000)]
