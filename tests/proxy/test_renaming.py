"""The model's name is replaced where it stands, and nothing else of a call is touched."""

import itertools
import json
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm_proxy.errors import ApiError
from llm_proxy.proxy.renaming import EventRenamer, JsonRenamer, Renamer, rename_form, rename_request, reply_renamer

OURS = 'client\'s "name" é'
THEIRS = "prov-4-secret"
PUT = json.dumps(OURS).encode()

# No test may depend on how busy the machine is.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)


def pieces(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    return (data[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(data)]))


def fed(renamer: Renamer, chunks: Iterable[bytes]) -> bytes:
    return b"".join(map(renamer.feed, chunks))


# Requests


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        pytest.param(b'{"model":"a","n":1}', b'{"model":%b,"n":1}', id="usual"),
        pytest.param(
            b' {\n"n" : [1, {"model": "a"}] ,\r\n\t"model"  :  "a" } ',
            b' {\n"n" : [1, {"model": "a"}] ,\r\n\t"model"  :  %b } ',
            id="white-space",
        ),
        pytest.param(b'{"mod\\u0065l":"\\u0061"}', b'{"mod\\u0065l":%b}', id="escapes"),
        pytest.param('{"é€😀":"\\ud83d","model":"é"}'.encode(), '{"é€😀":"\\ud83d","model":%b}'.encode(), id="beyond-ascii"),
        pytest.param(
            b'{"a":"\\"model\\":\\"a\\"","model":"a\\"b"}', b'{"a":"\\"model\\":\\"a\\"","model":%b}', id="quotes-in-texts"
        ),
        pytest.param(b'{"model":"a","model":"b"}', b'{"model":%b,"model":%b}', id="twice"),
        pytest.param(b'{"model":{"id":1},"x":1e999}', b'{"model":%b,"x":1e999}', id="no-text"),
        pytest.param(b'{"n":' + b"1" * 9000 + b',"model":"a"}', b'{"n":' + b"1" * 9000 + b',"model":%b}', id="digits"),
        pytest.param(b'{"message":{"model":"a"}}', b'{"message":{"model":"a"}}', id="only-deeper"),
        pytest.param(b"{}", b"{}", id="empty"),
    ],
)
def test_a_request_gets_the_provider_s_name(body: bytes, renamed: bytes) -> None:
    assert rename_request(body, OURS) == renamed.replace(b"%b", PUT)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"x",
        b'{"a":1',
        b'{"a" 1}',
        b'{"a":1,}',
        b'{"a":1 "b":2}',
        b"{1:2}",
        b'\xff{"model":"a"}',
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_what_is_no_object_cannot_be_renamed(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        rename_request(body, OURS)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        (b"a=%41+&model=gpt-4&b", b"a=%41+&model=x%2F4+%C3%A9&b"),
        (b"mod%65l=gpt-4&models=1&n=model=2", b"mod%65l=x%2F4+%C3%A9&models=1&n=model=2"),
        (b"model=1&model", b"model=x%2F4+%C3%A9&model=x%2F4+%C3%A9"),
        (b"n=1&&", b"n=1&&"),
        (b"", b""),
    ],
)
def test_a_form_gets_the_provider_s_name(body: bytes, renamed: bytes) -> None:
    assert rename_form(body, "x/4 é") == renamed


# What a document may hold, and how it may be written.

names = st.sampled_from(["model", "response", "message", "models", "id", "", "mode", 'é\\"', "\ud83d\ude00"])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.sampled_from([THEIRS, '"model":"', "\\"]),
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
styles = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 1]),
        "separators": st.sampled_from([(",", ":"), (" ,", " : ")]),
    }
)
MARK = "@@mark@@"


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A document as bytes, some of its keys with escapes."""
    text = json.dumps(draw(documents), **draw(styles))
    if draw(st.booleans()):
        text = text.replace('"model"', '"m\\u006fdel"').replace('"message"', '"messag\\u0065"')
    return text.encode("utf-8", "surrogatepass")


def expected(document: object, depth: int = 0) -> object:
    """The document with a mark in place of each name."""
    if not isinstance(document, dict) or depth > 1:
        return document
    return {
        key: MARK
        if key == "model" and isinstance(value, str)
        else expected(value, depth + 1)
        if key in ("response", "message") and depth == 0
        else value
        for key, value in document.items()
    }


@unhurried
@given(written(), st.data())
@example(b'{"model":"prov-4-secret\\\\"}', None)
@example(b'{"model":"a","response":{"model":"b","model":"c"},"model":"d"}', None)
@example(b'{"a":"\\"","model":"b"}', None)
@example(b'{"message":{"model":"a","x":{"model":"a"}},"response":[{"model":"a"}],"model":null}', None)
def test_a_reply_is_renamed_whichever_way_it_is_cut(reply: bytes, data: st.DataObject | None) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(reply)))) if data else range(len(reply))
    out = fed(JsonRenamer(MARK), pieces(reply, cuts))
    assert json.loads(out) == expected(json.loads(reply))
    # What stands between the marks is the reply's own, byte for byte.
    own = [re.escape(part) for part in out.split(json.dumps(MARK).encode())]
    assert re.fullmatch(rb'"(?:[^"\\]|\\.)*"'.join(own), reply, re.DOTALL)


@unhurried
@given(st.dictionaries(names, documents, max_size=4), styles)
def test_a_request_is_renamed_at_its_top_only(document: dict[str, Any], style: dict[str, Any]) -> None:
    body = json.dumps(document, **{**style, "ensure_ascii": True}).encode()
    out = rename_request(body, MARK)
    assert json.loads(out) == {key: MARK if key == "model" else value for key, value in json.loads(body).items()}


CHUNK = (
    b'{"id":"x","object":"chat.completion.chunk","model":"prov-4-secret","choices":[{"delta":{"content":"\\"model\\": \\n"}}]}'
)
STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","model":"prov-4-secret","content":[]}}\n\n'
    b'data:{"response":{"model":"prov-4-secret"}}\r\n\r\n: comment "model":"kept"\r\rid: 7\rdata\r'
    b'data: {"a":"b",\r\ndata: "model":\r\ndata: "prov-4-secret"}\r\n\r\ndatum: {"model":"kept"}\n'
    b'data: {"broken":"\n\ndata: ' + CHUNK + b"\n\ndata: [DONE]\n\n"
)


def test_each_name_in_a_stream_is_renamed_wherever_it_is_cut() -> None:
    whole = STREAM.replace(b'"prov-4-secret"', PUT)
    assert fed(EventRenamer(OURS), [STREAM]) == whole
    assert fed(EventRenamer(OURS), (bytes([byte]) for byte in STREAM)) == whole
    for cut in range(len(STREAM)):
        assert fed(EventRenamer(OURS), (STREAM[:cut], STREAM[cut:])) == whole
    bom = b"\xef\xbb\xbf"
    for cut in range(9):
        first = bom + b"data:" + CHUNK
        assert fed(EventRenamer(OURS), (first[:cut], first[cut:])) == first.replace(b'"prov-4-secret"', PUT)


@unhurried
@given(st.lists(written(), max_size=4), st.sampled_from([b"\n", b"\r", b"\r\n"]), st.data())
def test_the_data_of_each_event_is_a_document(replies: list[bytes], end: bytes, data: st.DataObject) -> None:
    stream, wanted = b"", b""
    for reply in replies:
        lines = reply.splitlines()
        stream += b"".join(b"data: " + line + end for line in lines) + end
        renamed = JsonRenamer(MARK).feed(b"\n".join(lines)).split(b"\n")
        wanted += b"".join(b"data: " + line + end for line in renamed) + end
    assert fed(EventRenamer(MARK), pieces(stream, data.draw(st.lists(st.integers(0, len(stream)))))) == wanted


def test_the_three_ends_of_a_line_are_told_apart() -> None:
    stream = b'data: {"a":1}\rdata: 2\nevent: {"model":"kept"}\n\n\rdata: {"model":\r\ndata: %b}\r\r'
    assert fed(EventRenamer(OURS), [stream % b'"prov"']) == stream % PUT


def test_nothing_but_a_name_is_held_back() -> None:
    renamer = EventRenamer(OURS)
    held = {at for found in re.finditer(rb'"prov-4-secret"', STREAM) for at in range(found.start(), found.end() - 1)}
    for at in range(len(STREAM)):
        assert bool(renamer.feed(STREAM[at : at + 1])) is (at not in held)


def test_a_name_that_never_ends_is_never_shown_or_kept() -> None:
    renamer = JsonRenamer(OURS)
    assert renamer.feed(b'{"model":"') == b'{"model":'
    assert not any(renamer.feed(b"x" * 65536) for _ in range(20))


def test_a_key_that_never_ends_is_not_kept() -> None:
    renamer, piece = JsonRenamer(OURS), b"m" * 65536
    renamer.feed(b'{"')
    tracemalloc.start()
    try:
        for _ in range(40):
            assert renamer.feed(piece) == piece
        assert tracemalloc.get_traced_memory()[0] < 4 * len(piece)
    finally:
        tracemalloc.stop()
    assert renamer.feed(b'":"a","model":"b"}') == b'":"a","model":%b}' % PUT


def test_documents_after_each_other_are_each_renamed() -> None:
    line = b'{"model":"prov-4-secret"}\n'
    assert JsonRenamer(OURS).feed(line * 3) == line.replace(b'"prov-4-secret"', PUT) * 3


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("text/event-stream; charset=utf-8", EventRenamer),
        ("application/json", JsonRenamer),
        ("Application/Problem+JSON", JsonRenamer),
        ("application/x-ndjson", JsonRenamer),
        ("application/jsonl", JsonRenamer),
        ("text/plain", None),
        ("audio/mpeg", None),
        ("", None),
    ],
)
def test_what_names_a_model_is_known_by_its_type(content_type: str, kind: type | None) -> None:
    renamer = reply_renamer(content_type, OURS)
    assert (type(renamer) if renamer else None) is kind
