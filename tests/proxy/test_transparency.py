"""What is sent arrives byte for byte, both ways, however it is cut."""

import asyncio
import gzip
import itertools
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage.asking import STREAM, call
from stage.house import PROVIDER_KEY, House
from stage.provider import END, Exchange, ScriptedProvider, answer, chunk
from stage.raw import RawConnection, connected

Pairs = list[tuple[bytes, bytes]]

# The fixtures are one house and one provider for all examples, as they would be for all calls.
sampled = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
FILES = "/v1/files"
NAMES = st.from_regex(rb"[A-Za-z]-[A-Za-z0-9!#$%&'*+.^`|~-]{1,12}", fullmatch=True)
# By a letter and a dash none of them begins like a header that has a rule of its own.
ASCII = st.binary(max_size=40).map(lambda raw: bytes(32 + byte % 95 for byte in raw).strip())
TEXT = st.binary(max_size=40).map(lambda raw: bytes(b for b in raw if (b >= 32 and b != 127) or b == 9).strip(b" \t"))
BODIES = st.one_of(
    st.binary(max_size=2000), st.integers(0, 200_000).map(lambda n: bytes(i * n % 251 for i in range(n // 7 + 1)) * 7)
)
EVENTS = st.lists(st.text(alphabet="aé€😀 \u2028:", max_size=12), max_size=8)


def pieces(data: bytes, cuts: Sequence[float]) -> list[bytes]:
    """The data, cut at these fractions of its length."""
    places = [0, *sorted({int(len(data) * cut) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places) if start < end]


CUTS = st.lists(st.floats(0, 1), max_size=12)


async def send_slowly(connection: RawConnection, data: Sequence[bytes]) -> None:
    for piece in data:
        await connection.send(piece)
        await asyncio.sleep(0)


def lines(head: bytes) -> Pairs:
    found = [line.partition(b":") for line in head.split(b"\r\n")[1:-2]]
    return [(name, value.strip(b" \t")) for name, _, value in found]


@sampled
@given(body=BODIES, cuts=CUTS, chunked=st.booleans(), kind=st.sampled_from(["application/json", "application/octet-stream", ""]))
async def test_a_requests_body_arrives_as_sent(
    house: House, provider: ScriptedProvider, body: bytes, cuts: list[float], chunked: bool, kind: str
) -> None:
    token = await house.token_for(provider.url)
    head = [f"POST {FILES} HTTP/1.1", "Host: proxy", f"api-key: {token}", *([f"Content-Type: {kind}"] if kind else [])]
    head.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    parts = pieces(body, cuts)
    async with connected(house.url) as connection:
        await send_slowly(
            connection, ["\r\n".join(head).encode() + b"\r\n\r\n", *([*map(chunk, parts), END] if chunked else parts)]
        )
        reply = await connection.answer()
    assert reply is not None and reply.status == 200, reply
    assert provider.exchanges[-1].body == body
    assert provider.exchanges[-1].header(b"content-type") == (kind.encode() or None)


@sampled
@given(headers=st.lists(st.tuples(NAMES, ASCII), max_size=12))
async def test_a_requests_headers_arrive_in_order_and_case(house: House, provider: ScriptedProvider, headers: Pairs) -> None:
    token = await house.token_for(provider.url)
    async with connected(house.url) as connection:
        await connection.send(call(token, *(name + b": " + value for name, value in headers)))
        assert (await connection.answer()).status == 200  # type: ignore[union-attr]
    arrived = lines(provider.exchanges[-1].head)
    assert arrived[0][0] == b"Host" and arrived[1] == (b"Content-Length", b"65")
    assert arrived[2 : 2 + len(headers)] == headers
    ours = arrived[2 + len(headers) :]
    assert [name for name, _ in ours] == [b"Content-Type", b"X-Request-ID", b"Authorization"]
    assert ours[-1][1] == b"Bearer " + PROVIDER_KEY.encode()


FRAMINGS = st.sampled_from(["length", "chunked", "close"])


def framed(head: bytes, body: bytes, cuts: Sequence[float], framing: str) -> list[bytes]:
    """A provider's answer in pieces."""
    if framing == "chunked":
        return [head + b"Transfer-Encoding: chunked\r\n\r\n", *map(chunk, pieces(body, cuts)), END]
    if framing == "length":
        return pieces(head + b"Content-Length: %d\r\n\r\n" % len(body) + body, cuts)
    return pieces(head + b"Connection: close\r\n\r\n" + body, cuts)


async def replied(house: House, provider: ScriptedProvider, sent: Sequence[bytes], close: bool) -> tuple[bytes, Pairs, bytes]:
    """Status line, headers and body of what a client gets when a provider sends this."""
    token = await house.token_for(provider.url)

    async def script(exchange: Exchange) -> None:
        await exchange.send(*sent)
        if close:
            exchange.writer.close()

    provider.script = script
    async with asyncio.timeout(10), connected(house.url) as connection:
        await connection.send(call(token, body=STREAM))
        reply = await connection.answer()
    assert reply is not None and reply.whole
    return reply.head.split(b"\r\n")[0], lines(reply.head), reply.body


ADDED = (
    *(b"X-Request-ID", b"X-Proxy", b"X-UPSTREAM-REQUEST-START", b"X-UPSTREAM-REQUEST-STOP", b"Server-Timing", b"Date"),
    *(b"X-PROXY-CACHE", b"Cache-Status"),
)
FRAMING = (b"Content-Length", b"Transfer-Encoding")


@sampled
@given(
    status=st.sampled_from([b"200 OK", b"201 All Right, Then", b"404 ", b"429 Too Many Requests", b"503 Bad", b"599 Odd"]),
    headers=st.lists(st.tuples(NAMES, TEXT), max_size=12),
    body=BODIES,
    cuts=CUTS,
    framing=FRAMINGS,
)
async def test_a_reply_arrives_as_sent(
    house: House, provider: ScriptedProvider, status: bytes, headers: Pairs, body: bytes, cuts: list[float], framing: str
) -> None:
    head = b"HTTP/1.1 %b\r\n" % status + b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    line, arrived, received = await replied(house, provider, framed(head, body, cuts, framing), framing == "close")
    assert received == body
    assert arrived[: len(headers)] == headers
    assert {name for name, _ in arrived[len(headers) :]} <= {*ADDED, *FRAMING}
    assert line.startswith(b"HTTP/1.1 " + status[:3]) and (not status[4:] or line.endswith(status[4:]))


@sampled
@given(
    said=EVENTS,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=CUTS,
    framing=FRAMINGS,
    coding=st.sampled_from(["", "gzip", "deflate"]),
)
async def test_an_event_stream_arrives_as_sent(
    house: House, provider: ScriptedProvider, said: list[str], end: str, cuts: list[float], framing: str, coding: str
) -> None:
    stream = "".join(f"event: x{end}data: {text}{end}{end}" for text in said).encode()
    body = {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[coding](stream)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + (
        f"Content-Encoding: {coding}\r\n".encode() if coding else b""
    )
    _, arrived, received = await replied(house, provider, framed(head, body, cuts, framing), framing == "close")
    assert received == body
    assert (b"X-Accel-Buffering", b"no") in arrived


@pytest.mark.parametrize("kind", ["application/json", "audio/mpeg"])
@pytest.mark.parametrize("coding", [b"identity", b"gzip"])
async def test_large_bodies_pass_both_ways(house: House, provider: ScriptedProvider, kind: str, coding: bytes) -> None:
    token = await house.token_for(provider.url)
    plain = b"".join(b"%d," % number for number in range(900_000))
    body = gzip.compress(plain, 1) if coding == b"gzip" else plain

    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(exchange.body, b"audio/mpeg", extra=b"Content-Encoding: %b\r\n" % coding))

    provider.script = script
    async with connected(house.url) as connection:
        head = (f"Content-Type: {kind}".encode(), b"Content-Encoding: " + coding)
        sending = asyncio.ensure_future(connection.send(call(token, *head, path=FILES, body=body)))
        reply = await connection.answer()
        await sending
    assert reply is not None and (reply.status, reply.body) == (200, body)
    assert provider.exchanges[-1].body == body
    assert provider.exchanges[-1].header(b"content-length") == b"%d" % len(body)
    assert provider.exchanges[-1].header(b"content-encoding") == coding
    assert house.events[-1].request_bytes == house.events[-1].reply_bytes == len(body)


async def test_the_target_is_forwarded_as_sent(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    targets = [f"{FILES}/a%20b%C3%A9;x=1?purpose=a&purpose=b;c=%2F&&=&e", f"{FILES}/%252e%252e", f"{FILES}/a+b!$&'()*,=:@-._~"]
    async with connected(house.url) as connection:
        for target in targets:
            await connection.send(call(token, path=target, method="GET", body=b""))
            assert (await connection.answer()).status == 200  # type: ignore[union-attr]
            assert provider.exchanges[-1].request_line == f"GET {target} HTTP/1.1".encode()
    assert len(provider.exchanges) == len(targets)
    assert provider.connections == 1
