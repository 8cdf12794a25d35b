"""One connection to a provider, whatever the provider does on it."""

import asyncio
import gc
import itertools
import math
import socket
import weakref
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage.asking import ask, call, event_of
from stage.house import House, settings_for
from stage.profiles import shipped
from stage.provider import STREAM_HEAD, ScriptedProvider, answer, chunk
from stage.scripts import in_turn, resets, sends

from llm_proxy.errors import UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from llm_proxy.grammar import MAX_HEAD_BYTES
from llm_proxy.upstream import Request, open_upstream
from llm_proxy.upstream.answer import READ_BUFFER, ReceivedAnswer
from llm_proxy.upstream.idle import IdleConnections
from llm_proxy.upstream.outgoing import Origin
from llm_proxy.upstream.protocol import Connection

OK = b"HTTP/1.1 200 OK\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b"hello, world"
# Name: the request's method, the whole answer, its body, whether the connection serves again.
FRAMINGS = {
    "length": ("POST", OK + b"Content-Length: 12\r\nX-A:  b \t\r\n\r\n" + BODY, BODY, True),
    "no-length-to-speak-of": ("POST", OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "chunked": ("POST", CHUNKED + b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n", BODY, True),
    "chunked-with-all": ("POST", CHUNKED + b"C;a=b;c\r\nhello, world\r\n000\r\nSet-Cookie: a\r\nX-T: 1\r\n\r\n", BODY, True),
    "chunked-and-last": (
        "POST",
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nc\r\nhello, world\r\n0\r\n\r\n",
        BODY,
        False,
    ),
    "close": ("POST", OK + b"X-A: b\r\n\r\n" + BODY, BODY, False),
    "http-1.0": ("POST", b"HTTP/1.0 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY, BODY, False),
    "head": ("HEAD", OK + b"Content-Length: 12\r\n\r\n", b"", True),
    "head-chunked": ("HEAD", CHUNKED, b"", True),
    "no-content": ("POST", b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", b"", True),
    "not-modified": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\n\r\n", b"", True),
    "after-interim-ones": (
        "POST",
        INTERIM + b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 12\r\n\r\n" + BODY,
        BODY,
        True,
    ),
}


class Line:
    """A connection, with the provider's end of it."""

    def __init__(self, connection: Connection, idle: IdleConnections, peer: socket.socket) -> None:
        self.connection = connection
        self.idle = idle
        self.peer = peer

    def ask(self, method: str = "POST", first_byte: float = 60) -> ReceivedAnswer:
        """Send a request."""
        return self.connection.begin(method, b"GET / HTTP/1.1\r\n\r\n", first_byte)

    def hear(self, *data: bytes, end: bool = False) -> None:
        """Let the provider say this, one piece after the other, and maybe close."""
        for piece in data:
            if not self.connection.is_closed:
                self.connection.data_received(piece)
        if end:
            self.connection.eof_received()

    @property
    def serves_again(self) -> bool:
        """Whether the connection waits for its next request."""
        return self.idle.take(self.connection.origin) is self.connection

    async def closed(self) -> bool:
        """Whether the provider sees an end, at once."""
        try:
            async with asyncio.timeout(0.1):
                while await asyncio.get_running_loop().sock_recv(self.peer, 65536):
                    pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True


async def a_line() -> Line:
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    idle = IdleConnections(shipped().apis["openai"])
    made = Connection(Origin(False, "provider.example", 80), idle)
    await asyncio.get_running_loop().create_connection(lambda: made, sock=ours)
    return Line(made, idle, peer)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    """A new connection."""
    made = await a_line()
    yield made
    made.idle.close()
    made.connection.abort()
    made.peer.close()


async def whole(answer: ReceivedAnswer) -> bytes:
    """All of a body."""
    pieces = []
    while piece := await answer.chunk():
        pieces.append(piece)
    return b"".join(pieces)


async def check(line: Line, name: str, pieces: Sequence[bytes]) -> Line:
    """Hear an answer in these pieces; returns the connection for the next one."""
    method, said, body, again = FRAMINGS[name]
    answer = line.ask(method)
    line.hear(*pieces, end=name == "close")
    await answer.head()
    assert (answer.status, answer.reason) == (
        int(said.rpartition(b"HTTP/1.")[2][2:5]),
        said.rpartition(b"HTTP/1.")[2].split(b"\r")[0][6:].decode(),
    )
    assert [value for given, value in answer.headers if given == b"X-A"] in ([b"b"], [])
    assert not [given for given, _ in answer.headers if given in (b"Link", b"X-T")]
    assert await whole(answer) == body
    assert line.serves_again is again
    if again:
        return line
    assert line.connection.is_closed
    line.peer.close()
    return await a_line()


@pytest.mark.parametrize("name", FRAMINGS)
async def test_an_answer_may_be_cut_at_every_byte(line: Line, name: str) -> None:
    said = FRAMINGS[name][1]
    for cut in range(len(said) + 1):
        line = await check(line, name, [piece for piece in (said[:cut], said[cut:]) if piece])
    line = await check(line, name, [said[at : at + 1] for at in range(len(said))])
    line.connection.abort()
    line.peer.close()


CUTS = st.sets(st.integers(1, 200), max_size=12)


@settings(max_examples=100, deadline=None)
@given(said=st.lists(st.tuples(st.sampled_from(sorted(FRAMINGS)), CUTS), min_size=1, max_size=5))
async def test_answers_may_follow_each_other_in_any_pieces(said: list[tuple[str, set[int]]]) -> None:
    line = await a_line()
    try:
        for name, cuts in said:
            data = FRAMINGS[name][1]
            places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
            line = await check(line, name, [data[start:end] for start, end in itertools.pairwise(places)])
    finally:
        line.connection.abort()
        line.peer.close()


# Where these are cut, a part may look like a whole chunk, or like the beginning of one.
CHUNKS_IN_CHUNKS = (
    (b"5\r\nhello\r\n", b"hello"),
    (b"a\r\n5\r\nhello\r\n\r\n", b"5\r\nhello\r\n"),
    (b"15\r\nhello\r\n7\r\n, world\r\n12\r\n", b"hello\r\n7\r\n, world\r\n12"),
    (b"C\r\nhello, world\r\n", BODY),
    (b"5\r\n\r\n0\r\n\r\n", b"\r\n0\r\n"),
)


async def flown(line: Line, *pieces: bytes) -> tuple[list[bytes], list[bytes]]:
    """What of an answer in these pieces flows: pieces of its body, with their framing where it came with them."""
    taken: list[tuple[bytes, bytes]] = []
    answer = line.ask()
    line.hear(CHUNKED)
    flowing = asyncio.ensure_future(answer.flow(lambda piece, chunk=b"": bool(taken.append((piece, chunk))), 7))
    await asyncio.sleep(0)
    line.hear(*pieces)
    assert await flowing
    assert line.serves_again
    return [piece for piece, _ in taken], [chunk for _, chunk in taken]


async def test_a_whole_chunk_flows_with_its_framing(line: Line) -> None:
    chunks = [said for said, _ in CHUNKS_IN_CHUNKS]
    pieces, framed = await flown(line, *chunks, b"0\r\n\r\n")
    assert pieces == [body for _, body in CHUNKS_IN_CHUNKS]
    assert framed == [b"", *chunks[1:3], b"", chunks[4]], "the first one comes before it is known where chunks begin"


async def test_chunks_that_flow_may_be_cut_at_any_two_bytes(line: Line) -> None:
    said = b"".join(chunk for chunk, _ in CHUNKS_IN_CHUNKS) + b"0\r\n\r\n"
    for first, second in itertools.combinations(range(1, len(said)), 2):
        pieces, framed = await flown(line, said[:first], said[first:second], said[second:])
        assert b"".join(pieces) == b"".join(body for _, body in CHUNKS_IN_CHUNKS), (first, second)
        assert all(chunk in (b"", b"%x\r\n%b\r\n" % (len(piece), piece)) for piece, chunk in zip(pieces, framed, strict=True))


async def test_a_body_of_known_length_that_looks_like_a_chunk_is_none(line: Line) -> None:
    await flown(line, *(said for said, _ in CHUNKS_IN_CHUNKS), b"0\r\n\r\n")
    answer = line.ask()
    line.hear(OK + b"Content-Length: 10\r\n\r\n")
    taken: list[bytes] = []
    flowing = asyncio.ensure_future(answer.flow(lambda piece, chunk=b"": bool(taken.append(piece)), 7))
    await asyncio.sleep(0)
    line.hear(b"5\r\nhello\r\n")
    assert await flowing
    assert taken == [b"5\r\nhello\r\n"]


@pytest.mark.parametrize("name", FRAMINGS)
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
async def test_an_end_at_any_moment_never_makes_an_answer_whole(name: str, reset: bool) -> None:
    method, said, _, _ = FRAMINGS[name]
    head = said.rindex(b"\r\n\r\n") + 4 if name != "chunked-with-all" and b"chunked" not in said else said.index(b"\r\n\r\n") + 4
    for cut in range(len(said)):
        line = await a_line()
        answer = line.ask(method)
        line.hear(*([said[:cut]] if cut else []))
        line.connection.connection_lost(ConnectionResetError()) if reset else line.connection.eof_received()
        line.peer.close()
        if cut < head:
            with pytest.raises(UpstreamUnavailable) as failure:
                await answer.head()
            assert failure.value.sent
            assert line.connection.is_silent is (cut == 0)
        elif name == "close" and not reset:
            assert await whole(answer) == said[head:cut]
        else:
            with pytest.raises(UpstreamInvalid, match="broke off"):
                await whole(answer)
        assert not line.serves_again and line.connection.is_closed
        if not reset:
            line.connection.connection_lost(None)


@pytest.mark.parametrize(
    ("method", "said", "body"),
    [
        pytest.param("POST", OK + b"Content-Length: 10\r\n\r\n" + b"0123456789" + b"x" * 26, b"0123456789", id="length"),
        pytest.param("POST", OK + b"Content-Length: 2\r\n\r\nab" + answer(b"poison"), b"ab", id="two-answers"),
        pytest.param("POST", CHUNKED + chunk(b"ab") + b"0\r\n\r\n" + b"3\r\nabc\r\n", b"ab", id="chunked"),
        pytest.param("POST", b"HTTP/1.1 204 No Content\r\n\r\n" + b"body", b"", id="204"),
        pytest.param("POST", b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n" + b"body", b"", id="204-close"),
        pytest.param("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n" + b"body", b"", id="304"),
        pytest.param("HEAD", OK + b"Content-Length: 4\r\n\r\n" + b"body", b"", id="head"),
        pytest.param("HEAD", CHUNKED + chunk(b"body"), b"", id="head-chunked"),
    ],
)
async def test_too_much_costs_the_connection_and_not_the_answer(line: Line, method: str, said: bytes, body: bytes) -> None:
    reply = line.ask(method)
    line.hear(said)
    assert await whole(reply) == body
    assert not line.serves_again and await line.closed()


@pytest.mark.parametrize(
    ("begin", "goes_on", "seen"),
    [
        pytest.param(OK + b"X-A: ", b"v" * 999, False, id="a-header"),
        pytest.param(b"HTTP/1.1 200 ", b"r" * 999, False, id="a-reason"),
        pytest.param(b"", INTERIM, False, id="interim-answers"),
        pytest.param(CHUNKED + b"1;", b"e" * 999, True, id="a-chunk-extension"),
        pytest.param(CHUNKED + b"0\r\nX-T: ", b"t" * 999, True, id="a-trailer"),
        pytest.param(CHUNKED + b"0\r\n", b"X-T: 1\r\n", True, id="trailers"),
    ],
)
async def test_what_is_no_body_does_not_go_on_for_ever(line: Line, begin: bytes, goes_on: bytes, seen: bool) -> None:
    reply = line.ask()
    line.hear(*([begin] if begin else []))
    if seen:
        await reply.head()
    heard = 0
    while not line.connection.is_closed and heard < 2 * MAX_HEAD_BYTES:
        line.hear(goes_on)
        heard += len(goes_on)
    assert heard <= MAX_HEAD_BYTES + len(goes_on)
    with pytest.raises(UpstreamInvalid):
        await (reply.chunk() if seen else reply.head())


async def test_many_small_chunks_are_no_overhead(line: Line) -> None:
    reply = line.ask()
    line.hear(CHUNKED, *[chunk(b"x")] * 30_000, b"0\r\n\r\n")
    assert len(await whole(reply)) == 30_000


async def test_a_provider_waits_for_a_reader_who_is_behind(line: Line) -> None:
    reply, size = line.ask(), 8 * 1024 * 1024
    sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(line.peer, answer(bytes(size))))
    await reply.head()
    for _ in range(20):
        await asyncio.sleep(0)
    # What is more than the limit came in the one read that crossed it.
    assert READ_BUFFER < reply.buffered <= READ_BUFFER + 256 * 1024
    assert not sending.done()
    assert len(await whole(reply)) == size
    await sending
    assert line.serves_again and line.connection.is_usable()


async def test_an_answer_that_is_whole_before_it_is_read_leaves_the_connection_reading(line: Line) -> None:
    reply = line.ask()
    said = answer(bytes(2 * READ_BUFFER))
    line.hear(said[:-1], said[-1:])
    assert line.serves_again
    line.connection._idle.put(line.connection)
    await asyncio.get_running_loop().sock_sendall(line.peer, b"poison")
    assert await line.closed()
    assert len(await whole(reply)) == 2 * READ_BUFFER


@pytest.mark.parametrize("said", [b"", b"poison"], ids=["end", "bytes"])
async def test_an_idle_connection_that_the_loop_has_not_read_is_not_used(line: Line, said: bytes) -> None:
    line.ask()
    line.hear(answer(b"ok"))
    line.peer.send(said) if said else line.peer.close()
    assert line.idle.take(line.connection.origin) is None
    assert line.connection.is_closed


async def test_deadlines_move_with_the_request_and_end_with_the_head(line: Line) -> None:
    reply = line.ask(first_byte=0.2)
    for _ in range(4):
        await asyncio.sleep(0.1)
        line.connection.moved()
    assert not line.connection.is_closed
    with pytest.raises(UpstreamTimeout):
        await reply.head()
    assert await line.closed()
    other = await a_line()
    reply = other.ask(first_byte=0.05)
    other.hear(STREAM_HEAD)
    await asyncio.sleep(0.1)
    assert not other.connection.is_closed and other.connection._deadline == math.inf
    other.connection.abort()
    other.peer.close()


async def test_who_waits_for_a_body_hears_of_silence_and_the_answer_goes_on(line: Line) -> None:
    reply = line.ask()
    line.hear(CHUNKED + chunk(b"ab"))
    assert await reply.chunk(60) == b"ab"
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await reply.chunk(0.02)
    line.hear(chunk(b"c"))
    # Who does not wait is not told, however long it takes.
    await asyncio.sleep(0.04)
    assert await reply.chunk(0.02) == b"c"
    line.hear(b"0\r\n\r\n")
    await asyncio.sleep(0.04)
    assert await reply.chunk(0.02) == b"" and line.serves_again


async def test_a_shorter_deadline_does_not_wait_for_a_longer_ones_timer(line: Line) -> None:
    line.ask(first_byte=60)
    line.hear(answer(b"ok"))
    reply = line.ask(first_byte=0.05)
    async with asyncio.timeout(1):
        with pytest.raises(UpstreamTimeout):
            await reply.head()


async def test_a_thousand_calls_need_one_timer(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []
    monkeypatch.setattr(line.connection, "_look_at", lambda when, at=line.connection._look_at: (looked.append(when), at(when)))
    for _ in range(1000):
        line.ask()
        line.hear(answer(b"ok"))
    assert len(looked) == 1


async def test_a_provider_that_does_not_read_is_not_written_to(line: Line) -> None:
    line.ask()
    line.connection.write(bytes(4 * 1024 * 1024))
    writing = asyncio.ensure_future(line.connection.written())
    await asyncio.sleep(0.05)
    assert not writing.done()
    got = 0
    while got < 4 * 1024 * 1024:
        got += len(await asyncio.get_running_loop().sock_recv(line.peer, 1 << 20))
    await asyncio.wait_for(writing, 1)
    line.connection.write(bytes(4 * 1024 * 1024))
    writing = asyncio.ensure_future(line.connection.written())
    await asyncio.sleep(0.01)
    # Nor does it keep who waits for it when the connection ends.
    line.connection.abort()
    await asyncio.wait_for(writing, 1)


async def test_nothing_is_left_of_a_connection_that_ended() -> None:
    line = await a_line()
    line.ask()
    line.hear(answer(b"ok", extra=b"Connection: close\r\n"))
    assert await line.closed()
    line.peer.close()
    left = weakref.ref(line.connection)
    gc.disable()
    try:
        del line
        await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "framing", [b"", b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["close", "length", "chunked"]
)
async def test_a_reset_never_looks_like_the_end_of_a_body(house: House, provider: ScriptedProvider, framing: bytes) -> None:
    token = await house.token_for(provider.url)
    body = chunk(b"hello") if b"chunked" in framing else b"hello"
    provider.script = resets(b"HTTP/1.1 200 OK\r\n%b\r\n" % framing, body)
    reply = await ask(house.url, call(token))
    assert reply is not None and not reply.whole
    assert (await event_of(house)).outcome == "upstream_incomplete"


@pytest.mark.parametrize("broken_by", [b"zz\r\n", None], ids=["bad-chunk", "fin"])
async def test_what_came_before_a_break_is_passed_on(tmp_path: Path, provider: ScriptedProvider, broken_by: bytes | None) -> None:
    """Also to a client so slow that the provider has gone before it took the last bytes."""
    profile = shipped().apis["openai"]
    provider.script = sends(STREAM_HEAD, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n") + (broken_by or b""), close=True)
    async with open_upstream(settings_for(tmp_path)) as upstream:
        request = Request("GET", provider.url, [], None, None, profile, profile.timeouts, trusted=True, on_sent=lambda: None)
        found = await upstream.open(request)
        await asyncio.sleep(0.1)
        assert await found.chunk() == b"data: 1\n\ndata: 2\n\n"
        with pytest.raises(UpstreamInvalid, match="broke off"):
            await found.chunk()
        found.abort()


async def test_two_answers_at_once_are_one_answer_and_no_connection(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = in_turn(sends(answer(b'"first"') + answer(b'"second"')), sends(answer(b'"third"')))
    assert [(await ask(house.url, call(token))).body for _ in range(2)] == [b'"first"', b'"third"']  # type: ignore[union-attr]
    assert provider.connections == 2
