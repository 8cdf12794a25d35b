"""Requests one after the other: one whose head was seen before is served as the first of its kind was."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from stage.raw import connected
from stage.site import Site, open_site

from llm_proxy.heads import Head, Heads, Start
from llm_proxy.inbound import Given, Inbound
from llm_proxy.serving import Calls

GET = b"GET /call?a=1 HTTP/1.1\r\nHost: h\r\nX-One: 1\r\n\r\n"
POST = b"POST /call HTTP/1.1\r\nhost: h\r\nContent-Length: 3\r\n\r\nabc"
ENDS = b"%b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
REQUESTS = {
    "without a body": GET,
    "with one": POST,
    "after an empty line": b"\r\n" + GET,
    "in chunks": b"POST /call HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "of a route of ours": b"POST /ours HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
    "of a route of ours without a body": b"GET /ours HTTP/1.1\r\nHost: h\r\n\r\n",
}


async def tell(request: web.BaseRequest) -> web.StreamResponse:
    said = f"{request.method} {request.raw_path} {sorted(request.headers.items())} ".encode()
    return web.Response(body=b"ours " + said + await request.read())


async def tell_call(request: Inbound) -> Given:
    body = b""
    while not request.content.at_eof():
        body += await request.content.readany()
    # Of the length the head of another request says nothing.
    headers = sorted(item for item in request.headers.items() if item[0].lower() != "content-length")
    said = f"{request.method} {request.raw_path} {headers} {request.length} {request.remote} ".encode() + body
    assert request.transport
    end = b"" if request.keep_alive else b"Connection: close\r\n"
    request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(said), end, said))
    return Given(request.keep_alive)


class Watched(Heads):
    """Notes which heads it knew."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[bool] = []

    def get(self, start: Start) -> Head | None:
        found = super().get(start)
        self.known.append(found is not None)
        return found


@pytest.fixture
def heads() -> Watched:
    return Watched()


@pytest.fixture
async def site(heads: Watched) -> AsyncIterator[Site]:
    calls = Calls(tell_call, lambda head: head.raw_path.startswith("/call"), heads)
    async with asyncio.timeout(20), open_site(tell, calls=calls) as opened:
        yield opened


async def answers(site: Site, *pieces: bytes, count: int = 1) -> list[bytes]:
    """The bodies that come back for the pieces, each sent in a segment of its own."""
    async with connected(site.url) as client:
        for piece in pieces:
            await client.send(piece)
            # The next piece must find this one read.
            await asyncio.sleep(0.002)
        found = [await client.answer() for _ in range(count)]
        assert all(one and one.whole and one.status == 200 for one in found), found
        return [one.body for one in found if one]


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_head_that_comes_again_gets_what_the_first_got(site: Site, heads: Watched, name: str) -> None:
    data = REQUESTS[name]
    first = await answers(site, data)
    assert await answers(site, data) == first
    assert await answers(site, data, data, data, count=3) == first * 3
    assert any(heads.known) is (name in ("without a body", "with one"))


@pytest.mark.parametrize("data", REQUESTS.values(), ids=REQUESTS)
async def test_a_known_head_that_comes_in_pieces_is_put_together(site: Site, data: bytes) -> None:
    first = await answers(site, data)
    for cut in range(1, len(data)):
        assert await answers(site, data[:cut], data[cut:], data, count=2) == first * 2, data[:cut]


# What waits behind chunks is not served (test_connection.py).
@pytest.mark.parametrize("following", [pytest.param(data, id=id) for id, data in REQUESTS.items() if id != "in chunks"])
async def test_known_requests_in_one_segment_are_answered_in_turn(site: Site, following: bytes) -> None:
    [first], [second] = await answers(site, GET), await answers(site, following)
    assert await answers(site, GET + following, count=2) == [first, second]
    assert await answers(site, following + GET, GET, count=3) == [second, first, first]


@pytest.mark.parametrize("apart", [False, True], ids=["with its head", "after its head"])
async def test_a_known_head_brings_its_own_body(site: Site, heads: Watched, apart: bool) -> None:
    for body in (b"abc", b"xyz", b"\r\n\r", b"GET", b"", b"a" * 12_345):
        head = POST[:-3].replace(b": 3", b": %d" % len(body))
        [told] = await answers(site, head, body) if apart and body else await answers(site, head + body)
        assert told.endswith(b" %d 127.0.0.1 %b" % (len(body), body))
    assert heads.known[2:] == [True] * (len(heads.known) - 2)


class Unknowing(Heads):
    """Knows no head, so that each goes to the parser."""

    def get(self, start: Start) -> None:
        return None


SENT = [GET, GET, POST, POST, POST.replace(b": 3", b": 0")[:-3], *REQUESTS.values(), b"\r\n", b"GET /call HTTP/1.1\r\nX-Rest: "]


# Slow for a table, quick for what it finds: bytes that mean something else where a request was begun before.
@settings(max_examples=25)
@given(sent=st.lists(st.sampled_from(SENT), min_size=1, max_size=6), cuts=st.lists(st.integers(1, 150), max_size=4))
async def test_whatever_comes_is_answered_as_if_no_head_were_known(sent: list[bytes], cuts: list[int]) -> None:
    data, told = b"".join(sent), []
    for heads in (Heads(), Unknowing()):
        calls = Calls(tell_call, lambda head: head.raw_path.startswith("/call"), heads)
        async with asyncio.timeout(20), open_site(tell, calls=calls) as site:
            for request in (GET, POST):
                await answers(site, request)
            told.append(await all_answers(site, data, cuts))
    assert told[0] == told[1]


async def all_answers(site: Site, data: bytes, cuts: list[int]) -> list[tuple[int, bytes] | None]:
    """What is answered to bytes that come in pieces, until nothing more comes."""
    places = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    found: list[tuple[int, bytes] | None] = []
    async with connected(site.url) as client:
        for start, end in itertools.pairwise([0, *places]):
            await client.send(data[start:end])
            await asyncio.sleep(0.001)
        client.writer.write_eof()
        while answer := await client.answer():
            # Error bodies have an id of their own.
            found.append((answer.status, answer.body if answer.status == 200 else b""))
    return found


@pytest.mark.parametrize("line", [b"GET /call", b"GET /ours"], ids=["a call", "a route of ours"])
async def test_a_known_head_that_ends_its_connection_ends_it(site: Site, line: bytes) -> None:
    for _ in range(3):
        async with connected(site.url) as client:
            await client.send(ENDS % line)
            answer = await client.answer()
            assert answer and answer.status == 200 and await client.is_closed()


@pytest.mark.parametrize("bad", [b"GET /call HTTP/1.1\r\nHost : h\r\n\r\n", b"nonsense\r\n\r\n"], ids=ascii)
async def test_what_is_no_request_is_refused_each_time(site: Site, bad: bytes) -> None:
    for _ in range(3):
        async with connected(site.url) as client:
            await client.send(bad)
            answer = await client.answer()
            assert answer and answer.status == 400 and await client.is_closed()


async def test_a_call_that_fails_by_a_mistake_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Inbound) -> Given:
        raise ZeroDivisionError

    async with open_site(tell, calls=Calls(fail, lambda head: True, Heads())) as site, connected(site.url) as client:
        await client.send(GET)
        assert await client.is_closed()
    assert "mistake of this program" in caplog.text


# The head of another request, as far as it came with what is before it; the value of its last header is what comes next.
BEGUN = b"GET /call?b=2 HTTP/1.1\r\nX-Rest: "


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([GET + BEGUN], id="behind a head"),
        pytest.param([POST + BEGUN], id="behind a body"),
        pytest.param([POST[:-2], b"bc" + BEGUN], id="behind the rest of a body"),
        pytest.param([GET + GET[:9], GET[9:] + BEGUN], id="behind the rest of a head"),
    ],
)
async def test_what_a_begun_head_goes_on_with_is_no_head(site: Site, pieces: list[bytes]) -> None:
    new = GET.replace(b"a=1", b"new")
    [known] = await answers(site, GET)
    for following in (GET, new):
        *_, last = await answers(site, *pieces, following, count=sum(piece.count(b"HTTP") for piece in pieces))
        assert last.startswith(b"GET /call?b=2 ")
    # Nor is it remembered as one.
    assert await answers(site, new) == [known.replace(b"a=1", b"new")]


@pytest.mark.parametrize(
    "pieces", [[POST[:-2], POST[-2:]], [POST[:-3], POST[-3:]], [REQUESTS["in chunks"]]], ids=["a body", "all of a body", "chunks"]
)
async def test_behind_a_body_with_an_end_heads_are_known(site: Site, heads: Watched, pieces: list[bytes]) -> None:
    await answers(site, GET)
    async with connected(site.url) as client:
        for data in pieces:
            await client.send(data)
        assert await client.answer()
        await client.send(GET)
        assert await client.answer()
    assert heads.known[-1]


async def test_empty_lines_are_no_head(site: Site) -> None:
    start, body = b"\r\n\r\n", b"a" * 100
    request = b"POST /call HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n"
    # All that came with the empty lines is as long as the body that is said to come.
    cut = 100 - len(request)
    await answers(site, start + request + body[:cut], body[cut:])
    other = GET.replace(b"X-One: 1", b"X-One: " + b"1" * (100 - len(GET) + 1))
    assert len(other) == 100
    [told] = await answers(site, start + other)
    assert told.startswith(b"GET /call?a=1 ")
