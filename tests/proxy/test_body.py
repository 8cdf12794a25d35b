"""Bodies of requests: read whole where a rule needs them, else passed on as they come."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from stage.asking import CHAT, ask, call, code_of, event_of, until
from stage.house import House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import END, ScriptedProvider, answer, chunk
from stage.raw import RawConnection, connected, exchange
from stage.scripts import holds

from llm_proxy.proxy.body import HELD_BYTES, Body, is_read_whole

FILES = "/v1/files"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
MIB = 2**20


@pytest.mark.parametrize(
    ("content_type", "whole"),
    [
        ("application/json", True),
        ("Application/JSON; charset=latin-1", True),
        (" application/json ;x", True),
        ("application/vnd.api+json", True),
        ("application/x-www-form-urlencoded", True),
        ("multipart/form-data; boundary=b", False),
        ("audio/wav", False),
        ("application/jsonl", False),
        ("text/json", False),
        ("", False),
    ],
)
def test_bodies_that_rules_read_are_read_whole(content_type: str, whole: bool) -> None:
    assert is_read_whole(content_type) is whole


@pytest.mark.parametrize(
    ("body", "content"), [(Body(), None), (Body(length=0), b""), (Body(held=b"x", length=1), b"x"), (Body(held=b"x"), b"x")]
)
def test_what_is_held_is_what_is_sent(body: Body, content: bytes | None) -> None:
    assert body.content(lambda error: None) == content


def upload(token: str, *headers: bytes, path: str = FILES, kind: bytes = b"audio/wav") -> bytes:
    """The head of an upload in chunks."""
    return call(token, b"Content-Type: " + kind, b"Transfer-Encoding: chunked", *headers, path=path, body=b"")


async def test_a_json_body_is_complete_before_its_provider_is_called(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    text = b'{"model": "gpt-4o", "x": "%b"}' % (b"y" * 3 * MIB)
    data = call(token, body=text)
    async with connected(house.url) as connection:
        await connection.send(data[:-1])
        await until(lambda: house.context.active)
        assert provider.connections == 0
        await connection.send(data[-1:])
        assert (await connection.answer()).status == 200  # type: ignore[union-attr]
    assert provider.exchanges[0].body == text


async def test_other_bodies_are_passed_on_once_they_are_large(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.reads_bodies = False
    provider.script = holds()
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(upload(token) + chunk(b"w" * HELD_BYTES))
        await until(lambda: house.context.active)
        assert provider.connections == 0
        await connection.send(chunk(b"w"))
        exchange = await provider.next_exchange()
        assert exchange.header(b"transfer-encoding") == b"chunked" and exchange.header(b"content-length") is None
        connection.abort()


FRAMES: dict[str, tuple[bytes, bytes, bytes | None, bytes | None]] = {
    "length": (b"Content-Length: 5\r\n\r\nhello", b"hello", b"5", None),
    "no-bytes": (b"Content-Length: 0\r\n\r\n", b"", b"0", None),
    "nothing": (b"\r\n", b"", b"0", None),
    "chunks": (b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"hel") + chunk(b"lo") + END, b"hello", b"5", None),
    "no-chunks": (b"Transfer-Encoding: chunked\r\n\r\n" + END, b"", b"0", None),
    "extensions": (b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n" + END, b"hello", b"5", None),
    "trailers": (b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"hello") + b"0\r\nX-Trailer: 1\r\n\r\n", b"hello", b"5", None),
    "large": (
        b"Content-Length: %d\r\n\r\n" % (2 * MIB) + b"w" * 2 * MIB,
        b"w" * 2 * MIB,
        b"%d" % (2 * MIB),
        None,
    ),
    "large-chunks": (
        b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"w" * MIB) + chunk(b"w" * MIB) + END,
        b"w" * 2 * MIB,
        None,
        b"chunked",
    ),
}


async def test_bodies_are_framed_anew(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    async with connected(house.url) as connection:
        for name, (framed, body, length, coding) in FRAMES.items():
            head = call(token, b"Content-Type: audio/wav", path=FILES, body=b"")
            await connection.send(head[:-2] + framed)
            assert (await connection.answer()).status == 200, name  # type: ignore[union-attr]
            found = provider.exchanges[-1]
            assert found.body == body, name
            assert (found.header(b"content-length"), found.header(b"transfer-encoding")) == (length, coding), name
            assert found.header(b"x-trailer") is None, name


async def test_a_request_without_a_body_gets_none(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    await ask(house.url, call(token, path="/v1/models", method="GET", body=b""))
    assert provider.exchanges[0].header(b"content-length") is None


@pytest.mark.parametrize("kind", [b"application/json", b"audio/wav"])
async def test_a_body_beyond_the_limit_is_413_however_it_is_framed(
    tmp_path: Path, provider: ScriptedProvider, kind: bytes
) -> None:
    async with open_house(settings_for(tmp_path, MAX_REQUEST_BYTES="2MiB")) as house:
        token = await house.token_for(provider.url)
        provider.reads_bodies = False
        provider.script = holds()
        whole = await exchange(house.url, call(token, b"Content-Type: " + kind, path=FILES, body=b"w" * (2 * MIB + 1)))
        assert whole is not None and (whole.status, code_of(whole), whole.closed) == (413, "request_too_large", True)
        assert provider.connections == 0
        async with asyncio.timeout(5), connected(house.url) as connection:
            await connection.send(upload(token, kind=kind) + chunk(b"w" * MIB) + chunk(b"w" * MIB) + chunk(b"w"))
            reply = await connection.answer()
        assert (reply.status, code_of(reply)) == (413, "request_too_large")  # type: ignore[union-attr]
        assert len(provider.exchanges) == (kind == b"audio/wav")
        if provider.exchanges:
            await asyncio.wait_for(provider.exchanges[0].closed.wait(), 1)
        exact = asyncio.ensure_future(ask(house.url, call(token, b"Content-Type: " + kind, path=FILES, body=b"w" * 2 * MIB)))
        await provider.next_exchange()
        await until(lambda: len(provider.exchanges) == 1 + (kind == b"audio/wav"))
        exact.cancel()


BROKEN = {
    "chunk-too-short": chunk(b"hello")[:-3] + b"\r\n" + END,
    "chunk-too-long": b"2\r\nhello\r\n" + END,
    "no-size": b"\r\nhello\r\n" + END,
    "bad-size": b"xyz\r\nhello\r\n" + END,
    "huge-size": b"fffffffffffffffff\r\nhello\r\n",
}


@pytest.mark.parametrize("before", [b"", chunk(b"w" * 2 * MIB)], ids=["held", "streamed"])
async def test_a_body_that_is_not_framed_as_it_says_is_400_once(house: House, provider: ScriptedProvider, before: bytes) -> None:
    token = await house.token_for(provider.url)
    provider.reads_bodies = False
    provider.script = holds()
    for number, (name, rest) in enumerate(BROKEN.items()):
        async with asyncio.timeout(5), connected(house.url) as connection:
            await connection.send(upload(token) + before)
            # A head that comes together with its broken body never becomes a call.
            await until(lambda: house.context.active)
            if before:
                found = await provider.next_exchange()
            await connection.send(rest)
            reply = await connection.answer()
            assert reply is not None and (reply.status, code_of(reply)) == (400, "bad_request"), name
            assert await connection.is_closed(), name
        event = await event_of(house, number)
        assert (event.outcome, event.code) == ("refused", "bad_request"), name
        if before:
            await asyncio.wait_for(found.closed.wait(), 1)
    assert len(provider.exchanges) == (len(BROKEN) if before else 0)
    assert len(house.events) == len(BROKEN)


def part(name: str, value: bytes) -> bytes:
    """A part of a form."""
    return b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)


FORM = b"multipart/form-data; boundary=b"
CLOSE = b"--b--\r\n"
AUDIO = part("file", b"w" * 1000)
LARGE = part("file", b"w" * 2 * MIB)


async def send_form(house: House, token: str, form: bytes, **more: Any) -> tuple[int, str]:
    """Status and error code of a form's answer."""
    reply = await ask(house.url, call(token, b"Content-Type: " + FORM, path=TRANSCRIPTIONS, body=form, **more))
    assert reply is not None
    return reply.status, code_of(reply) if reply.status >= 400 else ""


FORMS = {
    "model-first": (part("model", b"whisper-1") + AUDIO + CLOSE, (200, "")),
    "model-last": (AUDIO + part("model", b"whisper-1") + CLOSE, (200, "")),
    "model-first-of-a-large-form": (part("model", b"whisper-1") + LARGE + CLOSE, (200, "")),
    "another-model": (part("model", b"gpt-4o") + AUDIO + CLOSE, (403, "model_not_allowed")),
    "no-model": (AUDIO + CLOSE, (403, "model_not_allowed")),
    "two-models": (part("model", b"whisper-1") + AUDIO + part("model", b"gpt-4o") + CLOSE, (400, "duplicate_key")),
    "the-same-model-twice": (part("model", b"whisper-1") * 2 + AUDIO + CLOSE, (400, "duplicate_key")),
    "model-last-of-a-large-form": (LARGE + part("model", b"whisper-1") + CLOSE, (400, "model_must_come_first")),
    "not-closed": (part("model", b"whisper-1") + AUDIO, (400, "bad_request")),
    "cut-in-the-model": (AUDIO + part("model", b"gpt-4o")[:-4], (400, "bad_request")),
    "another-boundary": (part("model", b"whisper-1").replace(b"--b", b"--c") + CLOSE, (400, "bad_request")),
}


async def test_a_form_is_watched_for_the_model(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url, allowed_models=["whisper-*"])
    for name, (form, expected) in FORMS.items():
        before = len(provider.exchanges)
        assert await send_form(house, token, form) == expected, name
        assert len(provider.exchanges) - before == (expected[0] == 200), name
        if expected[0] == 200:
            assert provider.exchanges[-1].body == form, name
            assert house.events[-1].model == "whisper-1", name


TAILS = {
    "a-second-model": (part("model", b"gpt-4o") + CLOSE, "duplicate_key"),
    "no-closing-boundary": (b"", "bad_request"),
}


@pytest.mark.parametrize("name", TAILS)
async def test_what_is_wrong_with_a_form_under_way_cuts_it(house: House, provider: ScriptedProvider, name: str) -> None:
    tail, code = TAILS[name]
    token = await house.token_for(provider.url, allowed_models=["whisper-*"])
    provider.reads_bodies = False
    provider.script = holds()
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(upload(token, path=TRANSCRIPTIONS, kind=FORM) + chunk(part("model", b"whisper-1") + LARGE))
        found = await provider.next_exchange()
        await connection.send((chunk(tail) if tail else b"") + END)
        reply = await connection.answer()
        assert reply is not None and (reply.status, code_of(reply)) == (400, code)
        await found.closed.wait()
    assert (await event_of(house)).outcome == "refused"


async def test_a_form_under_way_is_cut_in_mid_answer(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url, allowed_models=["whisper-*"])
    provider.reads_bodies = False
    provider.script = holds(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b"data: 1\n\n")
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(upload(token, path=TRANSCRIPTIONS, kind=FORM) + chunk(part("model", b"whisper-1") + LARGE))
        await connection.reader.readuntil(b"data: 1\n\n")
        await connection.send(chunk(part("model", b"gpt-4o") + CLOSE) + END)
        assert b"duplicate_key" in await rest_of(connection)
        await provider.exchanges[0].closed.wait()
    assert (await event_of(house)).code == "duplicate_key"


async def rest_of(connection: RawConnection) -> bytes:
    """What comes until the connection is closed, which must not look like an end."""
    rest = await connection.reader.read()
    assert not rest.endswith(END)
    return rest


async def test_forms_of_unrestricted_tokens_are_nobodys_concern(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    for form in (part("model", b"a") + part("model", b"b") + CLOSE, b"not a form at all", LARGE + part("model", b"a")):
        assert await send_form(house, token, form) == (200, "")
        assert provider.exchanges[-1].body == form


async def test_rules_on_parameters_read_forms_and_json(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path), profiles=shipped(param_whitelist={"model": ("gpt-4o*",)})) as house:
        token = await house.token_for(provider.url)
        rows: list[tuple[bytes, bytes, int]] = [
            (b"application/json", b'{"model": "gpt-4o-mini"}', 200),
            (b"application/json; charset=utf-16", b'{"model": "gpt-5"}', 400),
            (b"application/json", b"{}", 200),
            (b"application/x-www-form-urlencoded", b"model=gpt-4o", 200),
            (b"application/x-www-form-urlencoded", b"model=gpt-5", 400),
            (b"application/x-www-form-urlencoded", b"model=gpt-4o&model=gpt-4o", 400),
            (b"text/plain", b'{"model": "gpt-4o"}', 400),
            (FORM, part("model", b"gpt-4o") + CLOSE, 200),
            (FORM, part("model", b"gpt-5") + CLOSE, 400),
            (FORM, part("model", b"gpt-5"), 400),
        ]
        for kind, body, status in rows:
            reply = await ask(house.url, call(token, b"Content-Type: " + kind, path=CHAT, body=body))
            assert reply is not None and reply.status == status, (kind, body)


@pytest.mark.parametrize("restricted", [False, True])
async def test_encoded_bodies_pass_unless_a_rule_must_read_them(
    house: House, provider: ScriptedProvider, restricted: bool
) -> None:
    token = await house.token_for(provider.url, allowed_models=["*"] if restricted else [])
    for coding, status in ((b"gzip", 400 if restricted else 200), (b"br", 400 if restricted else 200), (b"identity", 200)):
        provider.script = lambda exchange: exchange.send(answer(b"{}"))
        assert (await ask(house.url, call(token, b"Content-Encoding: " + coding))).status == status  # type: ignore[union-attr]
