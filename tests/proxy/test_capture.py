"""Bodies are captured as the setting says: bounded, decoded, without credentials, and nowhere else."""

import gzip
import json
import logging
import secrets
import zlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from stage.asking import BODY, STREAM, ask, call, event_of
from stage.house import PROVIDER_KEY, House, open_house, settings_for
from stage.logs import logged
from stage.management import managing
from stage.provider import END, STREAM_HEAD, ScriptedProvider, answer, chunk

from llm_proxy.proxy.capture import kept_of, reply_text, request_text
from llm_proxy.proxy.tee import KEEP, Tee
from llm_proxy.secret import Secret

JSON = {"Content-Type": "application/json"}
BOMB = gzip.compress(bytes(10_000_000))


@pytest.mark.parametrize(
    ("headers", "held", "text"),
    [
        pytest.param(JSON, b'{"a": 1}', '{"a": 1}', id="json"),
        pytest.param({"Content-Type": "application/problem+json"}, b"{}", "{}", id="a kind of json"),
        pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, b"a=1", "a=1", id="form"),
        pytest.param(JSON, b"", None, id="nothing"),
        pytest.param({}, b"{}", None, id="of no type"),
        pytest.param({"Content-Type": "audio/mpeg"}, b"ID3", None, id="sound"),
        pytest.param({"Content-Type": "multipart/form-data; boundary=b"}, b"--b", None, id="parts, which hold files"),
        pytest.param({**JSON, "Content-Encoding": "gzip"}, gzip.compress(b"[1]"), "[1]", id="gzip"),
        pytest.param({**JSON, "Content-Encoding": "deflate"}, zlib.compress(b"[1]"), "[1]", id="deflate"),
        pytest.param({**JSON, "Content-Encoding": "br"}, b"\x0b\x01", None, id="an unknown coding"),
        pytest.param({**JSON, "Content-Encoding": "gzip"}, BOMB, "\0" * 32, id="a bomb"),
        pytest.param(JSON, b"x" * 31 + "ü".encode(), "x" * 31, id="cut within a character"),
        pytest.param(JSON, b"\xff" * 3, "\ufffd" * 3, id="no UTF-8"),
        pytest.param(JSON, b"Bearer abcdefgh " * 9, "Bearer **** Bearer **** Bearer *", id="a credential"),
        pytest.param(JSON, b" " * 20 + b"sk-" + b"a" * 40, " " * 20 + "sk-****", id="a credential across the cut"),
    ],
)
def test_of_a_request_its_readable_beginning_is_captured(headers: dict[str, str], held: bytes, text: str | None) -> None:
    assert request_text(headers, held, 32) == text


def test_a_secret_of_ours_across_the_cut_is_masked() -> None:
    secret = Secret("a-provider-key-of-no-known-shape")
    text = request_text(JSON, b"x" * 20 + secret.reveal().encode(), 32)
    assert text == "x" * 20 + "****"


@pytest.mark.parametrize(
    ("kind", "coding", "data", "text"),
    [
        pytest.param("application/json", "", b"{}", "{}", id="json"),
        pytest.param("text/event-stream", "", b"data: 1\n\n", "data: 1\n\n", id="stream"),
        pytest.param("text/plain", "gzip", gzip.compress(b"words"), "words", id="gzip"),
        pytest.param("audio/mpeg", "", b"ID3", None, id="sound"),
        pytest.param("application/json", "br", b"\x0b", None, id="an unknown coding"),
        pytest.param("application/json", "", b"", None, id="nothing"),
        pytest.param("application/json", "", b"x" * 100, "x" * 32, id="long"),
    ],
)
def test_of_a_reply_its_readable_beginning_is_captured(kind: str, coding: str, data: bytes, text: str | None) -> None:
    tee = Tee(kind, coding)
    tee.feed(data)
    assert reply_text(tee, 32) == text


def test_a_call_without_an_answer_has_no_reply() -> None:
    assert reply_text(None, 32) is None


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ({}, False),
        ({"OBSERVABILITY_CAPTURE": "none"}, False),
        ({"OBSERVABILITY_CAPTURE": "bodies"}, True),
        ({"OBSERVABILITY_CAPTURE": "bodies", "OBSERVABILITY_ENABLED": "false"}, False),
    ],
    ids=str,
)
def test_only_who_captures_bodies_keeps_more_of_them(tmp_path: Path, given: dict[str, str], more: bool) -> None:
    settings = settings_for(tmp_path, OBSERVABILITY_MAX_RESPONSE_BODY_BYTES="1MiB", **given)
    assert (kept_of(settings) > 2**20) is more
    assert more or kept_of(settings) == KEEP


def spooled(house: House) -> list[dict[str, Any]]:
    """The events in the log of a house."""
    return logged(Path(house.context.settings.event_dir))


@pytest.mark.parametrize(
    ("capture", "bodies", "client"),
    [("none", False, False), ("metadata", False, True), ("bodies", True, True)],
)
async def test_the_log_of_events_holds_what_the_setting_says(
    tmp_path: Path, provider: ScriptedProvider, capture: str, bodies: bool, client: bool
) -> None:
    said = b'{"model": "m", "choices": [], "answer": "forty-two"}'
    provider.script = lambda exchange: exchange.send(answer(said))
    async with open_house(settings_for(tmp_path, OBSERVABILITY_CAPTURE=capture)) as house:
        token = await house.token_for(provider.url)
        await ask(house.url, call(token, b"User-Agent: test/1"))
        await event_of(house)
        [event] = spooled(house)
    assert (event["request_body"], event["reply_body"]) == ((BODY.decode(), said.decode()) if bodies else (None, None))
    assert (event["client_ip"], event["user_agent"]) == (("127.0.0.1", "test/1") if client else (None, None))
    assert (event["outcome"], event["model"], event["model_used"]) == ("completed", "gpt-4o", "m")


async def test_captured_bodies_hold_no_credential_and_reach_neither_log_nor_metrics(
    tmp_path: Path, provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shaped = "sk-" + secrets.token_hex(16)
    settings = settings_for(
        tmp_path, OBSERVABILITY_CAPTURE="bodies", OBSERVABILITY_MAX_RESPONSE_BODY_BYTES="100", LOG_FILE=str(tmp_path / "log")
    )
    async with open_house(settings) as house, managing(house) as site:
        token = await house.token_for(provider.url)
        echoed = f'{{"key": "{PROVIDER_KEY}", "token": "{token}", "words": "plain words of a reply", "more": "{"m" * 200}"}}'
        provider.script = lambda exchange: exchange.send(answer(echoed.encode()))
        asked = json.dumps({"model": "gpt-4o", "messages": [f"plain words of a request {shaped} {PROVIDER_KEY}"]})
        reply = await ask(house.url, call(token, body=asked.encode()))
        assert reply and reply.body == echoed.encode(), "the client gets what the provider said"
        event = await event_of(house)
        text = (await site.ask("GET", "/metrics", token=None)).text
        [written] = spooled(house)
    assert event.request_body == written["request_body"] and "plain words of a request sk-****" in written["request_body"]
    assert written["reply_body"].startswith('{"key": "****", "token": "') and len(written["reply_body"]) == 100
    for seen in (orjson.dumps(written).decode(), (tmp_path / "log").read_text(), caplog.text, text):
        assert not any(secret in seen for secret in (shaped, PROVIDER_KEY, token))
    for seen in ((tmp_path / "log").read_text(), caplog.text, text):
        assert "plain words" not in seen


async def test_a_stream_is_captured_as_it_was_sent(tmp_path: Path, provider: ScriptedProvider) -> None:
    stream = b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"
    provider.script = lambda exchange: exchange.send(STREAM_HEAD, *map(chunk, stream), END)
    async with open_house(settings_for(tmp_path, OBSERVABILITY_CAPTURE="bodies")) as house:
        await ask(house.url, call(await house.token_for(provider.url), body=STREAM))
        event = await event_of(house)
    assert (event.stream, event.reply_body) == (True, b"".join(stream).decode())
