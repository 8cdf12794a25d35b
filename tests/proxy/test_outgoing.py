"""The provider gets its own name for the model, wherever the client wrote one."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from stage.asking import ask, call
from stage.house import House, open_house, settings_for
from stage.provider import ScriptedProvider
from stage.raw import Answer
from stage.routes import at, token_with

FORM = b"multipart/form-data; boundary=b"
URLENCODED = b"application/x-www-form-urlencoded"
MAPPING: Mapping[str, Any] = {
    "smart": "prov-1",
    "gpt-4*": "prov-4*",
    "gpt-4-turbo*": {"mapped_model": "prov-turbo", "max_input_tokens": 8},
    "any/*": "*",
    "zürich": "prov zü",
}


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def form(model: str, size: int = 10) -> bytes:
    audio = part("file", bytes(size), '; filename="a.wav"\r\nContent-Type: audio/wav')
    return part("language", b"de") + part("model", model.encode()) + audio + b"--b--\r\n"


async def said(house: House, token: str, *headers: bytes, **more: Any) -> Answer:
    reply = await ask(house.url, call(token, *headers, **more), more.get("method", "POST"))
    assert reply is not None
    return reply


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ("smart", "prov-1"),
        ("gpt-4o", "prov-4o"),
        ("gpt-4", "prov-4"),
        ("gpt-4-turbo-2024", "prov-turbo"),
        ("any/llama", "llama"),
        ("zürich", "prov zü"),
        ("acme/smart", "prov-1"),
        ("gpt-3.5", None),
        ("any/", None),
        ("SMART", None),
        ("acme/acme/smart", None),
    ],
)
async def test_a_mapping_is_exact_first_then_the_longest_glob(
    tmp_path: Any, provider: ScriptedProvider, asked: str, used: str | None
) -> None:
    async with open_house(settings_for(tmp_path, PROVIDER_SUFFIX="acme")) as house:
        token = await token_with(house, at(provider.url, model_mapping=MAPPING))
        body = b'{ "n" : 1.0, "model" : "%b","user":"smart"}' % asked.encode()
        reply = await said(house, token, body=body)
        if used is None:
            assert reply.status == 404 and not provider.exchanges
            return
        [exchange] = provider.exchanges
        assert reply.status == 200
        assert orjson.loads(exchange.body) == {"n": 1.0, "model": used, "user": "smart"}
        assert exchange.body.startswith(b'{ "n" : 1.0, "model" : "') and exchange.body.endswith(b',"user":"smart"}')
        assert int(exchange.header(b"Content-Length") or 0) == len(exchange.body)
        assert (house.events[0].model, house.events[0].model_used) == (asked, used)


@pytest.mark.parametrize(
    ("kind", "path", "body", "expected"),
    [
        pytest.param(URLENCODED, "/v1/completions", b"a=1&model=smart&b=2", b"a=1&model=prov-1&b=2", id="form"),
        pytest.param(FORM, "/v1/audio/transcriptions", form("smart"), form("prov-1"), id="multipart"),
        pytest.param(FORM, "/v1/audio/transcriptions", form("smart", 2**21), form("prov-1", 2**21), id="multipart-streamed"),
        pytest.param(FORM, "/v1/files", part("file", bytes(2**21), '; filename="f"') + b"--b--\r\n", None, id="upload"),
    ],
)
async def test_forms_are_renamed_and_their_lengths_follow(
    house: House, provider: ScriptedProvider, kind: bytes, path: str, body: bytes, expected: bytes | None
) -> None:
    token = await token_with(house, at(provider.url, model_mapping=MAPPING))
    reply = await said(house, token, b"Content-Type: " + kind, path=path, body=body)
    [exchange] = provider.exchanges
    assert (reply.status, exchange.body) == (200, expected or body)
    assert int(exchange.header(b"Content-Length") or 0) == len(exchange.body)


async def test_paths_are_renamed(house: House, provider: ScriptedProvider) -> None:
    token = await token_with(house, at(provider.url, model_mapping={**MAPPING, "any/*": "org/*"}))
    azure = await token_with(house, at(provider.url, provider_type="azure", model_mapping=MAPPING))
    for path in ("/v1/models/smart", "/v1/models/any/gpt%204?a=smart"):
        assert (await said(house, token, path=path, method="GET", body=b"")).status == 200
    deployment = "/openai/deployments/smart/chat/completions"
    assert (await said(house, azure, path=deployment, body=b'{"model": "other"}')).status == 200
    targets = [exchange.request_line.split()[1].decode() for exchange in provider.exchanges]
    assert targets == [
        "/v1/models/prov-1",
        "/v1/models/org/gpt%204?a=smart",
        "/openai/deployments/prov-1/chat/completions?api-version=2024-10-21",
    ]
    assert provider.exchanges[-1].body == b'{"model": "prov-1"}', "whichever the provider reads, it is the one that was checked"


async def test_a_renamed_call_asks_for_what_can_be_renamed_and_vouches_for_no_bytes(
    house: House, provider: ScriptedProvider
) -> None:
    sent = (b"Accept-Encoding: gzip", b"Range: bytes=10-", b"Content-MD5: x", b"Content-Digest: sha-256=:x:", b"Digest: x")
    plain = await token_with(house, at(provider.url))
    renamed = await token_with(house, at(provider.url, model_mapping={"*": "prov-*"}))
    for token in (plain, renamed):
        assert (await said(house, token, *sent)).status == 200
    names = (b"accept-encoding", b"range", b"content-md5", b"content-digest", b"digest")
    before, after = ([exchange.header(name) for name in names] for exchange in provider.exchanges)
    assert before == [b"gzip", b"bytes=10-", b"x", b"sha-256=:x:", b"x"]
    assert after == [b"identity", None, None, None, None]
