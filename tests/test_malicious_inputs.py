"""Inputs that must not hurt: each row of the specification's table, as raw bytes on a socket of the running program."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from stage.asking import until
from stage.house import MANAGEMENT_TOKEN, PROVIDER_KEY, House, open_house, settings_for
from stage.provider import Exchange, ScriptedProvider, scripted_provider
from stage.provider import answer as answer_of
from stage.raw import Answer, RawConnection, connected
from stage.site import serving_tasks

pytestmark = pytest.mark.asyncio(loop_scope="module")

# In every input, and in no answer of ours.
MARK = b"zx9qzx9q"
BODY = b'{"model": "gpt-4o", "messages": []}'
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n" % (len(BODY), BODY)
END = b"0\r\n\r\n"


def request(
    *headers: bytes, line: bytes = b"POST /v1/chat/completions HTTP/1.1", body: bytes = b"", host: bytes = b"Host: h"
) -> bytes:
    """A request that is all right but for what is given; `{auth}` becomes the token's header when it is sent."""
    given = [host, b"{auth}", b"Content-Type: application/json", b"X-Mark: " + MARK, *headers]
    return b"\r\n".join([line, *(header for header in given if header), b"", body])


def get(target: bytes, *headers: bytes) -> bytes:
    return request(*headers, line=b"GET %b HTTP/1.1" % target)


def chunked(body: bytes) -> bytes:
    return request(CHUNKED, body=body)


@dataclass
class Case:
    """One input.

    Attributes:
        row: its row in the specification.
        pieces: what is sent, each in a segment of its own.
        statuses: what may be answered; a status below 300 means that the provider got the request.
        closes: whether the connection ends after the answer; None where either is right.
        absent: headers that must not reach the provider.
        present: headers that must, with their values.
        forwarded: what the provider must have got as its body.
    """

    row: int
    name: str
    pieces: Sequence[bytes]
    statuses: tuple[int, ...] = (400,)
    closes: bool | None = True
    absent: tuple[bytes, ...] = ()
    present: dict[bytes, bytes] = field(default_factory=dict)
    forwarded: bytes = b""

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name}"


def refused(row: int, name: str, *pieces: bytes, statuses: tuple[int, ...] = (400,), closes: bool | None = True) -> Case:
    return Case(row, name, pieces, statuses, closes)


def forwarded(row: int, name: str, *pieces: bytes, body: bytes = b"", closes: bool | None = False, **more: object) -> Case:
    return Case(row, name, pieces, (200,), closes, forwarded=body, **more)  # type: ignore[arg-type]


def with_body(*headers: bytes) -> bytes:
    return request(*headers, LENGTH, body=BODY)


def either(row: int, name: str, *pieces: bytes, body: bytes = b"") -> Case:
    return Case(row, name, pieces, (200, 400), None, forwarded=body)


SMUGGLED = b"GET /admin HTTP/1.1\r\nHost: h\r\nX-Mark: " + MARK + b"\r\n\r\n"
BAD_LENGTHS = [
    b"+5",
    b"-1",
    b"-0",
    b"0x5",
    b"0o5",
    b"1_0",
    b"1 0",
    b"5x",
    b"",
    b"9" * 20,
    b"5,5",
    b"5\t5",
    b"5.0",
    b"5e0",
    b"\xb2",
]
BAD_CODINGS = [
    b"\x0bchunked",
    b"\x0cchunked",
    b"chunked\0",
    b"\xa0chunked",
    b"xchunked",
    b"chunked;a=b",
    b"gzip, chunked",
    b"chunked,",
]

FRAMING = [
    refused(1, "CL.TE", request(b"Content-Length: 5", CHUNKED, body=END)),
    refused(1, "CL.TE in two segments", request(b"Content-Length: 5", CHUNKED), END),
    refused(2, "TE.CL", request(CHUNKED, b"Content-Length: 5", body=END)),
    refused(
        3, "CL.TE with an embedded request", request(b"Content-Length: %d" % (5 + len(SMUGGLED)), CHUNKED, body=END + SMUGGLED)
    ),
    refused(4, "TE.TE", request(CHUNKED, b"Transfer-Encoding: identity", body=END)),
    refused(4, "TE.TE reversed", request(b"Transfer-Encoding: identity", CHUNKED, body=END)),
    refused(4, "TE.TE equal", request(CHUNKED, CHUNKED, body=END)),
    refused(4, "TE.TE in one line", request(b"Transfer-Encoding: chunked, identity", body=END)),
    refused(6, "empty TE with CL", request(b"Transfer-Encoding:", b"Content-Length: 5", body=b"12345")),
    refused(6, "empty TE", request(b"Transfer-Encoding:", body=END)),
    *[refused(7, ascii(coding), request(b"Transfer-Encoding: " + coding, body=END)) for coding in BAD_CODINGS],
    refused(8, "space before the colon", request(b"Transfer-Encoding : chunked", body=END)),
    refused(8, "tab before the colon", request(b"Transfer-Encoding\t: chunked", body=END)),
    refused(9, "folded TE", request(b"Transfer-Encoding:\r\n chunked", body=END)),
    refused(10, "folded header", request(b"X: a\r\n b", LENGTH, body=BODY)),
    refused(10, "folded with a tab", request(b"X: a\r\n\tb", LENGTH, body=BODY)),
    refused(11, "chunks in HTTP/1.0", request(CHUNKED, line=b"POST /v1/chat/completions HTTP/1.0", body=CHUNKS + END)),
    refused(13, "two equal lengths", request(b"Content-Length: 5", b"Content-Length: 5", body=b"12345")),
    refused(13, "two lengths", request(b"Content-Length: 5", b"Content-Length: 6", body=b"12345")),
    refused(13, "two lengths in one line", request(b"Content-Length: 5, 5", body=b"12345")),
    *[refused(14, ascii(length), request(b"Content-Length: " + length, body=b"12345")) for length in BAD_LENGTHS],
    *[refused(15, ascii(length), request(b"Content-Length: " + length, body=b"12345")) for length in (b"005", b"00", b"0200")],
    refused(16, "full-width digit", request("Content-Length: ５".encode(), body=b"12345")),
    refused(18, "no body, then X, at once", request(b"Content-Length: 0", line=b"GET /v1/models HTTP/1.1", body=b"X\r\n\r\n")),
]

BAD_CHUNKS = {
    "longer than its size": b"3\r\n12345\r\n0\r\n\r\n",
    "shorter than its size": b"9\r\n12345\r\n0\r\n\r\n",
    "no size": b"\r\n12345\r\n0\r\n\r\n",
    "negative size": b"-5\r\n12345\r\n0\r\n\r\n",
    "hex prefix": b"0x5\r\n12345\r\n0\r\n\r\n",
    "size beyond 64 bits": b"FFFFFFFFFFFFFFFFF\r\n12345\r\n",
    "size with a space": b"5 \r\n12345\r\n0\r\n\r\n",
    "size with an underscore": b"0_5\r\n12345\r\n0\r\n\r\n",
}
BAD_LINE_ENDS = {
    "LF after the size": b"5\n12345\r\n0\r\n\r\n",
    "CR after the size": b"5\r12345\r\n0\r\n\r\n",
    "LF after the data": b"5\r\n12345\n0\r\n\r\n",
    "CR after the data": b"5\r\n12345\r0\r\n\r\n",
    "LF at the end": b"5\r\n12345\r\n0\n\n",
    "LF in an extension": b"5;a\nb\r\n12345\r\n0\r\n\r\n",
}
BAD_TRAILERS = (b"Content-Length: 5", b"Transfer-Encoding: chunked")
DROPPED_TRAILERS = (b"Host: evil", b"Authorization: Bearer evil", b"Content-Type: evil/evil", b"Cookie: evil", b"X-Mark: evil")

CHUNKING = [
    *[refused(20, f"{name}, at once", chunked(body)) for name, body in BAD_CHUNKS.items()],
    *[refused(20, name, chunked(b""), body) for name, body in BAD_CHUNKS.items()],
    *[refused(21, f"{name}, at once", chunked(body)) for name, body in BAD_LINE_ENDS.items()],
    *[refused(21, name, chunked(b""), body) for name, body in BAD_LINE_ENDS.items()],
    either(
        23,
        "chunk extension of 26 MB",
        chunked(b"%x;" % len(BODY) + b"a" * 26_000_000 + b"\r\n" + BODY + b"\r\n" + END),
        body=BODY,
    ),
    *[
        refused(25, f"{trailer.decode()}, at once", chunked(CHUNKS + b"0\r\n" + trailer + b"\r\n\r\n"))
        for trailer in BAD_TRAILERS
    ],
    *[refused(25, trailer.decode(), chunked(CHUNKS), b"0\r\n" + trailer + b"\r\n\r\n") for trailer in BAD_TRAILERS],
    *[
        forwarded(
            26,
            trailer.decode(),
            chunked(CHUNKS + b"0\r\n" + trailer + b"\r\n\r\n"),
            body=BODY,
            present={b"content-type": b"application/json", b"x-mark": MARK},
            absent=(b"cookie", b"trailer"),
        )
        for trailer in DROPPED_TRAILERS
    ],
]

LINES = [
    refused(29, "LF after the request line", request(line=b"GET /v1/models HTTP/1.1\nX-Y: z")),
    refused(29, "LF after a header", request(b"A: b\nC: d", LENGTH, body=BODY)),
    refused(29, "LF after every line", request(LENGTH, body=BODY).replace(b"\r\n", b"\n")),
    refused(30, "CR after the request line", request(line=b"GET /v1/models HTTP/1.1\rX-Y: z")),
    refused(30, "CR within a value", request(b"A: b\rC: d", LENGTH, body=BODY)),
    refused(30, "CR at the end of a value", request(b"A: b\r", LENGTH, body=BODY)),
    refused(31, "NUL in a value", with_body(b"A: b\0c")),
    refused(31, "NUL in a name", with_body(b"A\0B: c")),
    refused(31, "NUL in the target", get(b"/v1/mod\0els")),
    *[
        refused(32, f"control character {byte:#x}", with_body(b"A: b%cc" % byte))
        for byte in (*range(1, 9), 0x0B, 0x0C, 0x1B, 0x7F)
    ],
    refused(34, "a line of white space before the headers", request(line=b"GET /v1/models HTTP/1.1\r\n ")),
    refused(34, "a white space before the first header", request(host=b" Host: h", line=b"GET /v1/models HTTP/1.1")),
    *[
        refused(35, name.decode(), with_body(name + b": 5"))
        for name in (b"X_Api_Key", b"Content_Length", b"Transfer_Encoding", b"Authorization_", b"_method")
    ],
    *[refused(35, f"{char!r} in a name", with_body(b"A%bB: c" % char)) for char in (b" ", b"(", b'"', b"/", b"@", b"\xe9", b"{")],
    refused(36, "obs-text in a value", with_body(b"A: \xe9")),
    refused(36, "a lone surrogate", with_body(b"A: \xed\xa0\x80")),
    refused(36, "UTF-8 in a value", with_body("A: ü".encode())),
]

HOSTS = [
    refused(37, "no Host", request(LENGTH, host=b"", body=BODY)),
    refused(37, "two Hosts", request(b"Host: other", LENGTH, body=BODY)),
    refused(37, "two equal Hosts", request(b"Host: h", LENGTH, body=BODY)),
    refused(37, "a list of hosts", request(LENGTH, host=b"Host: h, other", body=BODY)),
    refused(37, "a user in the Host", request(LENGTH, host=b"Host: h@other", body=BODY)),
    refused(37, "a path in the Host", request(LENGTH, host=b"Host: h/v1", body=BODY)),
    refused(40, "another absolute host", get(b"http://other/v1/models")),
    refused(40, "a user before our host", get(b"http://h@other/v1/models")),
    refused(40, "another port", get(b"http://h:1/v1/models")),
    forwarded(42, "absolute https", get(b"https://h/v1/models")),
    forwarded(42, "absolute http", get(b"http://H/v1/models")),
    refused(43, "GET *", get(b"*")),
    refused(44, "CONNECT", request(line=b"CONNECT h:443 HTTP/1.1"), statuses=(405,)),
    refused(44, "CONNECT with what follows", request(line=b"CONNECT h:443 HTTP/1.1", body=SMUGGLED), statuses=(405,)),
    *[
        refused(45, method.decode(), request(line=method + b" /v1/models HTTP/1.1"), statuses=(405,))
        for method in (b"TRACE", b"TRACK", b"DEBUG")
    ],
    *[
        refused(47, ascii(method[:12]), request(line=method + b" /v1/models HTTP/1.1"), statuses=(400, 501))
        for method in (b"FOOBAR", b"get", b"G" * 100_000, b"GE\x01T", b"G ET", b"\x16\x03\x01", b"G\xc3\x89T")
    ],
    refused(47, "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused(47, "another version", request(line=b"GET /v1/models HTTP/3.7")),
    refused(47, "no version", b"GET /v1/models\r\n\r\n"),
    either(48, "two spaces", request(line=b"GET /v1/models  HTTP/1.1")),
    either(48, "two spaces before the target", request(line=b"GET  /v1/models HTTP/1.1")),
    either(48, "a tab", request(line=b"GET\t/v1/models\tHTTP/1.1")),
    either(48, "a space in the path", request(line=b"GET /v1/mod els HTTP/1.1")),
    either(50, "a leading CRLF", b"\r\n" + get(b"/v1/models")),
    refused(50, "endless leading CRLFs", *[b"\r\n" * 20_000] * 3, statuses=(431,)),
]

BIG = b"a" * 100_000
SIZES = [
    refused(51, "target of 100 KB", get(b"/v1/models/" + BIG), statuses=(414,)),
    refused(51, "target of 17 KB", get(b"/v1/models/" + BIG[:17_000]), statuses=(414,)),
    refused(51, "header of 100 KB", with_body(b"A: " + BIG), statuses=(431,)),
    refused(51, "10 000 headers", with_body(*[b"A%d: b" % number for number in range(10_000)]), statuses=(431,)),
    refused(51, "name of 64 KB", with_body(BIG[:65_536] + b": b"), statuses=(431,)),
    refused(
        51, "100 KB in many headers", with_body(*[b"A%d: %b" % (number, BIG[:1000]) for number in range(100)]), statuses=(431,)
    ),
    refused(
        51,
        "100 KB in drips",
        request(line=b"GET /v1/models HTTP/1.1")[:-2],
        *[b"A: " + BIG[:9_995] + b"\r\n"] * 10,
        statuses=(431,),
    ),
    forwarded(51, "header of 60 KB", with_body(b"A: " + BIG[:60_000]), body=BODY),
]


def path_refused(row: int, *paths: bytes) -> list[Case]:
    return [refused(row, ascii(path)[2:-1], get(path)) for path in paths]


TARGETS = [
    *path_refused(
        53, b"/v1/../admin", b"/v1/%2e%2e/admin", b"/v1/%2E./admin", b"/v1/./models", b"/v1/models/..", b"/../v1/models"
    ),
    *path_refused(54, b"/v1/..;/admin", b"/v1/..;a=b/admin", b"/v1/%2e%2e;/admin"),
    *path_refused(55, b"//v1/models", b"/v1//models", b"///evil.example/", b"/v1\\models", b"/v1%5cmodels", b"/v1%2Fmodels"),
    forwarded(56, "encoded twice", get(b"/v1/files/%252e%252e/content")),
    *path_refused(
        58, b"/v1/%00", b"/v1/%0d%0a", b"/v1/%0aX:%20y", b"/v1/models?a=%00", b"/v1/models?a=%0d%0aX", b"/v1/models?a=%0AX:y"
    ),
    *path_refused(59, b"/v1/%zz", b"/v1/%", b"/v1/%u0041", b"/v1/models?a=%", b"/v1/models?%zz", b"/v1/%2"),
    *path_refused(60, "/v1/ü".encode(), b"/v1/\xc0\xaf", b"/v1/%c0%af", b"/v1/models?\xff", b"/v1/%ff"),
    forwarded(62, "duplicates", get(b"/v1/models?key=a&key=b&key=")),
    forwarded(62, "semicolons", get(b"/v1/models?key=a;key=b;;")),
    forwarded(62, "10 000 parameters", get(b"/v1/models?" + b"&" * 10_000)),
    forwarded(62, "odd but allowed", get(b"/v1/models?a[]=%7B%22%7D&b=c=d&/../?")),
    *[
        refused(63, query.decode(), get(b"/v1/models?" + query))
        for query in (b"api_key=sk-lp-1", b"api-key=x", b"a=b&access_token=x", b"api%5Fkey=x", b"x=sk-lp-1", b"apikey=x")
    ],
]

TWO = b"Authorization: Bearer other"
QUOTES = b"Authorization: Bearer ' OR '1'='1"
CREDENTIALS = [
    refused(64, "two Authorization headers", with_body(TWO)),
    refused(64, "two equal Authorization headers", with_body(b"{auth}")),
    refused(64, "Authorization and x-api-key that disagree", with_body(b"x-api-key: other"), closes=None),
    refused(64, "Authorization and api-key that disagree", with_body(b"api-key: other"), closes=None),
    *[
        refused(65, name, with_body(b"Authorization: " + value).replace(b"{auth}\r\n", b""), statuses=statuses, closes=None)
        for name, value, statuses in (
            ("SQL", b"Bearer ' OR '1'='1", (401,)),
            ("1 MB", b"Bearer " + b"a" * 1_000_000, (401, 431)),
            ("60 KB", b"Bearer " + b"a" * 60_000, (401,)),
            ("control character", b"Bearer a\x01b", (400, 401)),
            ("NUL", b"Bearer a\0b", (400, 401)),
            ("homoglyph", "Bearer ѕk-lp-1".encode(), (400, 401)),
            ("no scheme", b"sk-lp-1", (401,)),
            ("Basic", b"Basic c2stbHAtMTo=", (401,)),
            ("empty", b"Bearer", (401,)),
            ("ours, mistyped", b"Bearer sk-lp-" + b"0" * 60, (401,)),
        )
    ],
    *[
        refused(67, name, with_body(b"Authorization: Bearer " + value).replace(b"{auth}\r\n", b""), statuses=(401,), closes=None)
        for name, value in (("a provider's key", PROVIDER_KEY.encode()), ("an admin session", b"as-lp-" + b"0" * 60))
    ],
]

AUTH_KEPT = {b"authorization": b"Bearer " + PROVIDER_KEY.encode()}
FOR = (
    b"X-Forwarded-For: 6.6.6.6",
    b"X-Real-IP: 6.6.6.6",
    b"Forwarded: for=6.6.6.6",
    b"X-Forwarded-Host: evil",
    b"X-Forwarded-Proto: https",
)
FOR += (b"X-Forwarded-Prefix: /evil", b"X-Original-URL: /admin", b"X-Rewrite-URL: /admin")
HOP = (
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic eA==",
    b"TE: trailers",
    b"Trailer: X",
)
OVERRIDES = (b"X-HTTP-Method-Override: DELETE", b"X-Method-Override: DELETE", b"X-HTTP-Method: DELETE")
H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
WEBSOCKET = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ==")
RANGES = b"Range: bytes=" + b",".join([b"0-"] * 1000)
EVIL = b'{"api_base":"http://evil","base_url":"http://evil","extra_headers":{"a":"b"},"model":"gpt-4o","messages":[],"_method":"DELETE"}'


def names(headers: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(header.partition(b":")[0].lower() for header in headers)


HEADERS = [
    *[
        forwarded(68, named.decode(), with_body(b"X-Named: v", b"Connection: close, " + named), body=BODY, closes=True, **more)
        for named, more in (
            (b"Authorization", {"present": AUTH_KEPT}),
            (b"X-Forwarded-For", {}),
            (b"Content-Length", {"present": {b"content-length": b"%d" % len(BODY)}}),
            (b"Host", {}),
            (b"X-Named", {"absent": (b"x-named",)}),
            (b"x-named , x-mark", {"absent": (b"x-named", b"x-mark")}),
        )
    ],
    forwarded(69, "hop-by-hop fields", with_body(*HOP), body=BODY, absent=names(HOP)),
    forwarded(69, "Upgrade", with_body(b"Upgrade: TLS/1.2"), body=BODY, absent=(b"upgrade",)),
    forwarded(70, "h2c", get(b"/v1/models", *H2C), absent=names(H2C), closes=True),
    forwarded(70, "h2c with a body", with_body(*H2C), body=BODY, absent=names(H2C), closes=True),
    forwarded(70, "h2c with what follows", get(b"/v1/models", *H2C) + SMUGGLED, absent=names(H2C), closes=True),
    refused(72, "websocket", get(b"/v1/realtime", *WEBSOCKET), statuses=(426,)),
    refused(72, "websocket with a body", with_body(*WEBSOCKET), statuses=(426,)),
    refused(72, "websocket without Connection", get(b"/v1/models", b"Upgrade: WebSocket"), statuses=(426,)),
    refused(72, "websocket among others", get(b"/v1/models", b"Upgrade: h2c, websocket/13"), statuses=(426,)),
    forwarded(73, "origins from a stranger", with_body(*FOR), body=BODY, absent=names(FOR)),
    forwarded(75, "method overrides", with_body(*OVERRIDES), body=BODY, absent=names(OVERRIDES)),
    forwarded(78, "1000 ranges", get(b"/v1/files/a/content", RANGES), present={b"range": RANGES.partition(b": ")[2]}),
    forwarded(79, "a quality that is no number", get(b"/v1/models", b"Accept-Encoding: gzip;q=NaN")),
    forwarded(
        79, "unknown codings", get(b"/v1/models", b"Accept-Encoding: br, zstd, x"), present={b"accept-encoding": b"identity"}
    ),
    forwarded(87, "a body that names hosts", request(b"Content-Length: %d" % len(EVIL), body=EVIL), body=EVIL, present=AUTH_KEPT),
]

CASES = [*FRAMING, *CHUNKING, *LINES, *HOSTS, *SIZES, *TARGETS, *CREDENTIALS, *HEADERS]


@dataclass
class Stage:
    """The program before a provider that records; `token` opens it."""

    house: House
    provider: ScriptedProvider
    token: str

    def bytes_of(self, piece: bytes) -> bytes:
        """What is sent for a piece of a case."""
        return piece.replace(b"{auth}", b"Authorization: Bearer " + self.token.encode())

    def moved(self, case: Case, path: bytes) -> Case:
        """A case for the operator, on a path of our own."""
        pieces = [piece.replace(b"{auth}", b"Authorization: Bearer " + MANAGEMENT_TOKEN.encode()) for piece in case.pieces]
        pieces = [piece.replace(b"/v1/chat/completions", path).replace(b"/v1/", path.rstrip(b"/") + b"/") for piece in pieces]
        return replace(case, pieces=pieces)

    def refusals(self) -> float:
        """How many requests were counted as refused."""
        return self.house.context.metrics.total(self.house.context.metrics.refusals)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = settings_for(folder)
    async with scripted_provider() as provider, open_house(settings) as house:
        yield Stage(house, provider, await house.token_for(provider.url))


async def some_turns() -> None:
    """Let the loop, on which the program runs too, take what is on its sockets."""
    for _ in range(12):
        await asyncio.sleep(0)


async def nothing_more(connection: RawConnection) -> bool:
    """Whether an open connection stays silent."""
    try:
        async with asyncio.timeout(0.03):
            await connection.reader.read(1)
        return False
    except TimeoutError:
        return True


async def talk(stage: Stage, url: str, case: Case) -> tuple[Answer | None, list[Answer]]:
    """Send a case; returns its answer, and the answers to a clean request on the same connection, ended by its close."""
    async with asyncio.timeout(20), connected(url) as connection:
        for piece in case.pieces:
            await connection.send(stage.bytes_of(piece))
            await some_turns()
        answer = await connection.answer()
        await connection.send(stage.bytes_of(get(b"/v1/models")))
        later = []
        while answer and (found := await connection.answer()):
            later.append(found)
            if await nothing_more(connection):
                break
        return answer, later


def check_refusal(answer: Answer | None, case: Case) -> None:
    assert answer and answer.whole and answer.status in case.statuses, answer
    error = orjson.loads(answer.body)["error"]
    assert error["source"] == "proxy" and error["code"] and error["type"]
    assert answer.header(b"content-type") == b"application/json"
    assert len(answer.header(b"x-request-id") or b"") == 36
    assert len(answer.head + answer.body) < 1024
    assert MARK not in answer.head + answer.body
    if case.closes:
        assert [line.lower() for line in answer.head.split(b"\r\n")].count(b"connection: close") == 1


def check_forwarded(stage: Stage, case: Case) -> None:
    seen = stage.provider.exchanges[-1]
    first = stage.bytes_of(case.pieces[0]).lstrip(b"\r\n")
    method, target = first.split()[:2]
    for prefix in (b"http://h", b"https://h", b"http://H"):
        target = target.removeprefix(prefix)
    assert seen.request_line == method + b" " + target + b" HTTP/1.1"
    assert seen.body == case.forwarded
    assert not set(case.absent) & {name for name, _ in seen.headers}
    for name, value in case.present.items():
        assert [given for there, given in seen.headers if there == name] == [value]
    assert stage.token.encode() not in seen.head


async def check_all_is_well(stage: Stage, tasks: int) -> None:
    """Nothing is left of a case, and who comes next is served at once."""
    await until(lambda: stage.house.context.active == 0 and serving_tasks() == tasks)
    took = []
    for _ in range(3):
        began = time.monotonic()
        async with asyncio.timeout(5), connected(stage.house.url) as connection:
            await connection.send(stage.bytes_of(get(b"/v1/models")))
            fresh = await connection.answer()
        assert fresh and fresh.status == 200
        took.append(time.monotonic() - began)
        if took[-1] < 0.1:
            break
    assert min(took) < 0.1
    await until(lambda: serving_tasks() == tasks)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_an_input_that_must_not_hurt(stage: Stage, case: Case) -> None:
    tasks, seen, counted = serving_tasks(), len(stage.provider.exchanges), stage.refusals()
    provider = stage.provider
    answer, later = await talk(stage, stage.house.url, case)
    reached = len(provider.exchanges) - seen - len([found for found in later if found.status == 200])
    if answer and answer.status < 300:
        assert answer.status in case.statuses and answer.body == b'{"ok": true}'
        del provider.exchanges[seen + reached :]
        assert reached == 1
        check_forwarded(stage, case)
    else:
        check_refusal(answer, case)
        assert reached == 0
        assert stage.refusals() == counted + 1
    if case.closes is not None:
        assert len(later) == (0 if case.closes else 1)
    assert len(later) <= 1 and all(found.status == 200 for found in later)
    await check_all_is_well(stage, tasks)


# What the parser decides must hold on every site; what the routers decide could differ.
ROWS = (1, 3, 4, 7, 8, 10, 15, 20, 21, 25, 29, 31, 35, 36, 37, 40, 44, 45, 51, 53, 54, 55, 58, 59, 63, 64, 72)
SAMPLE = [case for case in CASES if case.row in ROWS and case.closes and case.statuses[0] >= 400]


@pytest.mark.parametrize(("site", "path"), [("proxy", b"/manage/projects"), ("admin", b"/health")], ids=["manage", "admin"])
async def test_our_own_routes_are_as_strict(stage: Stage, site: str, path: bytes) -> None:
    tasks, seen, url = serving_tasks(), len(stage.provider.exchanges), getattr(stage.house.sites, site)
    for case in SAMPLE:
        if site == "admin" and case.row in (20, 21, 25) and not case.name.endswith("at once"):
            # Nothing there takes a body, so the answer comes before it.
            continue
        moved = stage.moved(case, path)
        answer, later = await talk(stage, url, moved)
        check_refusal(answer, moved)
        assert not later, case.id
    assert len(stage.provider.exchanges) == seen
    await check_all_is_well(stage, tasks)


# A body that is streamed to the provider while it comes, so that the provider has seen a part of it when it breaks.
PART = b"a" * 2_000_000
STREAMED = request(line=b"POST /v1/files HTTP/1.1", host=b"Host: h").replace(b"application/json", b"application/octet-stream")
STREAMED_CHUNKS = STREAMED.replace(b"X-Mark", CHUNKED + b"\r\nX-Mark") + b"%x\r\n%b\r\n" % (len(PART), PART)
STREAMED_LENGTH = STREAMED.replace(b"X-Mark", b"Content-Length: 3000000\r\nX-Mark") + PART


@pytest.mark.parametrize(
    ("start", "rest", "status"),
    [
        pytest.param(STREAMED_CHUNKS, b"zz\r\n", 400, id="20-a bad chunk size"),
        pytest.param(STREAMED_CHUNKS, b"5\r\n12345\n", 400, id="21-a bad line end"),
        pytest.param(STREAMED_CHUNKS, b"0\r\nContent-Length: 5\r\n\r\n", 400, id="25-a bad trailer"),
        pytest.param(STREAMED_LENGTH, None, None, id="17-FIN before the length is reached"),
        pytest.param(STREAMED_CHUNKS, None, None, id="28-FIN before the last chunk"),
    ],
)
async def test_a_streamed_body_that_breaks_never_looks_complete(
    stage: Stage, start: bytes, rest: bytes | None, status: int | None
) -> None:
    tasks, seen = serving_tasks(), len(stage.provider.exchanges)
    async with asyncio.timeout(10), connected(stage.house.url) as connection:
        await connection.send(stage.bytes_of(start))
        await until(lambda: len(stage.provider.exchanges) > seen)
        if rest is None:
            connection.writer.write_eof()
        else:
            await connection.send(rest)
        answer = await connection.answer()
        assert (answer.status if answer else None) == status
        assert await connection.is_closed()
    exchange = stage.provider.exchanges[-1]
    assert exchange.request_line == b"POST /v1/files HTTP/1.1"
    await until(exchange.writer.is_closing)
    assert exchange.body == b"", "the provider read a whole body"
    assert stage.house.events[-1].outcome == ("refused" if status else "client_gone")
    await check_all_is_well(stage, tasks)


@pytest.mark.parametrize(
    "start",
    [request(b"Content-Length: 100", body=BODY), chunked(CHUNKS), request(b"Content-Length: 100")[:-20]],
    ids=["17-length", "28-chunks", "within the head"],
)
async def test_who_leaves_before_the_body_is_whole_reaches_no_provider(stage: Stage, start: bytes) -> None:
    tasks, seen = serving_tasks(), len(stage.provider.exchanges)
    async with asyncio.timeout(10), connected(stage.house.url) as connection:
        await connection.send(stage.bytes_of(start))
        await some_turns()
        connection.writer.write_eof()
        assert await connection.is_closed()
    assert len(stage.provider.exchanges) == seen
    await check_all_is_well(stage, tasks)


async def test_what_follows_a_request_is_judged_by_itself(stage: Stage) -> None:
    """Row 18: a request without a body, then what is no request."""
    async with asyncio.timeout(10), connected(stage.house.url) as connection:
        await connection.send(stage.bytes_of(get(b"/v1/models", b"Content-Length: 0")))
        first = await connection.answer()
        await connection.send(b"X\r\n\r\n")
        second = await connection.answer()
        assert first and first.status == 200
        check_refusal(second, refused(18, "X"))
        assert await connection.is_closed()


async def test_a_million_chunks_of_one_byte_arrive_as_one_body(stage: Stage) -> None:
    """Row 24."""
    body = b'{"model": "gpt-4o", "x": "' + b"a" * 1_000_000 + b'"}'
    data = stage.bytes_of(chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + END))
    async with asyncio.timeout(60), connected(stage.house.url) as connection:
        await connection.send(data)
        answer = await connection.answer()
    assert answer and answer.status == 200
    assert stage.provider.exchanges[-1].body == body


TRAILED = chunked(CHUNKS + b"0\r\nX-Evil: 1\r\nAuthorization: Bearer evil\r\n\r\n")


@pytest.mark.parametrize(
    "pieces", [(TRAILED,), (TRAILED[:-60], TRAILED[-60:]), (TRAILED[:-1], TRAILED[-1:])], ids=["1", "2", "split end"]
)
async def test_a_trailer_reaches_neither_its_request_nor_the_next(stage: Stage, pieces: tuple[bytes, ...]) -> None:
    """Row 26: aiohttp's parser holds the last trailer back, as if it were a header of the next request."""
    seen = len(stage.provider.exchanges)
    async with asyncio.timeout(10), connected(stage.house.url) as connection:
        for piece in (*pieces, get(b"/v1/models")):
            await connection.send(stage.bytes_of(piece))
            await some_turns()
        assert [getattr(await connection.answer(), "status", None) for _ in range(2)] == [200, 200]
    exchanges = stage.provider.exchanges[seen:]
    assert [exchange.body for exchange in exchanges] == [BODY, b""]
    assert all(b"evil" not in exchange.head.lower() for exchange in exchanges)
    assert [exchange.header(b"authorization") for exchange in exchanges] == [AUTH_KEPT[b"authorization"]] * 2


@pytest.mark.parametrize(
    "rest", [get(b"/v1/models"), get(b"/v1/models")[:30], b"GET /v1/"], ids=["a request", "a head", "a line"]
)
async def test_what_shares_a_segment_with_trailers_is_not_served(stage: Stage, rest: bytes) -> None:
    tasks, seen = serving_tasks(), len(stage.provider.exchanges)
    async with asyncio.timeout(10), connected(stage.house.url) as connection:
        await connection.send(stage.bytes_of(TRAILED + rest))
        answer = await connection.answer()
        assert answer and answer.status == 200 and answer.header(b"connection") == b"close"
        await connection.send(stage.bytes_of(get(b"/v1/models")))
        assert await connection.is_closed()
    assert len(stage.provider.exchanges) == seen + 1
    await check_all_is_well(stage, tasks)


@pytest.mark.parametrize("url", ["proxy", "admin"])
async def test_other_hosts_are_answered_421_when_a_list_is_set(tmp_path: Path, url: str) -> None:
    """Row 39."""
    async with open_house(settings_for(tmp_path, ALLOWED_HOSTS="proxy.example")) as house:
        for host, status in ((b"evil.example", 421), (b"", 421), (b"Proxy.Example:8080", 200)):
            async with asyncio.timeout(5), connected(getattr(house.sites, url)) as connection:
                await connection.send(b"GET /live HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
                answer = await connection.answer()
                assert answer and answer.status == status
                if status == 421:
                    check_refusal(answer, refused(39, "host", statuses=(421,)))
                    assert await connection.is_closed()


async def test_our_scheme_is_the_socket_s(stage: Stage) -> None:
    """Row 42: an absolute https target does not turn our own links into https."""

    async def created(exchange: Exchange) -> None:
        location = b"Location: " + stage.provider.url.encode() + b"/v1/models/1\r\n"
        await exchange.send(answer_of(b"{}", status=b"201 Created", extra=location))

    stage.provider.script, usual = created, stage.provider.script
    try:
        async with asyncio.timeout(5), connected(stage.house.url) as connection:
            await connection.send(stage.bytes_of(get(b"https://h/v1/models", b"X-Forwarded-Proto: https")))
            answer = await connection.answer()
            assert answer and answer.header(b"location") == b"http://h/v1/models/1"
    finally:
        stage.provider.script = usual


async def test_options_of_everything_is_answered_by_us(stage: Stage) -> None:
    """Row 43."""
    seen = len(stage.provider.exchanges)
    async with asyncio.timeout(5), connected(stage.house.url) as connection:
        await connection.send(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await connection.answer()
        assert answer and answer.status == 204
    assert len(stage.provider.exchanges) == seen


EXPECT = b"Expect: 100-continue"


@pytest.mark.parametrize("site", ["call", "manage"])
async def test_a_body_is_asked_for_once_it_is_wanted(stage: Stage, site: str) -> None:
    """Row 76."""
    body = {"call": BODY, "manage": b'{"name": "expected"}'}[site]
    case = forwarded(76, "asks", request(EXPECT, b"Content-Length: %d" % len(body)))
    case = stage.moved(case, b"/manage/projects") if site == "manage" else case
    async with asyncio.timeout(5), connected(stage.house.url) as connection:
        await connection.send(stage.bytes_of(case.pieces[0]))
        asked = await connection.answer()
        assert asked and asked.head == b"HTTP/1.1 100 Continue\r\n\r\n"
        await connection.send(body)
        answer = await connection.answer()
        assert answer and answer.status == {"call": 200, "manage": 201}[site]
        assert await nothing_more(connection)


@pytest.mark.parametrize("site", ["call", "manage"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((EXPECT, b"Content-Length: 5", b"no token"), 401),
        ((b"Expect: x", b"Content-Length: 5"), 417),
        ((b"Expect: 100-continue, x", b"Content-Length: 5"), 417),
        ((EXPECT, b"Content-Length: 50000000"), 413),
    ],
    ids=["no token", "another expectation", "two expectations", "too large"],
)
async def test_a_body_that_is_not_wanted_is_not_asked_for(
    stage: Stage, site: str, headers: tuple[bytes, ...], status: int
) -> None:
    """Row 76."""
    wanted = [header for header in headers if header != b"no token"]
    case = refused(76, "asks", request(*wanted), statuses=(status,))
    if len(wanted) < len(headers):
        case.pieces = [piece.replace(b"{auth}\r\n", b"") for piece in case.pieces]
    case = stage.moved(case, b"/manage/projects") if site == "manage" else case
    answer, later = await talk(stage, stage.house.url, case)
    check_refusal(answer, case)
    assert not later


async def test_pipelined_requests_are_answered_in_order(stage: Stage) -> None:
    """Row 90: far more than the queue of a connection holds."""
    count = 300
    seen, tasks = len(stage.provider.exchanges), serving_tasks()
    async with asyncio.timeout(20), connected(stage.house.url) as connection:
        await connection.send(b"".join(stage.bytes_of(get(b"/v1/models?%d" % number)) for number in range(count)))
        statuses = [getattr(await connection.answer(), "status", None) for _ in range(count)]
        assert statuses == [200] * count and await nothing_more(connection)
    lines = [exchange.request_line for exchange in stage.provider.exchanges[seen:]]
    assert lines == [b"GET /v1/models?%d HTTP/1.1" % number for number in range(count)]
    await check_all_is_well(stage, tasks)
