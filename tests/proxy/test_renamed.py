"""What a client sees of a model that a mapping renamed: its own name, and nowhere the provider's."""

import gzip
from typing import Any

import orjson
import pytest
from stage.asking import ASKING, ask, call, code_of
from stage.house import House, open_house, settings_for
from stage.provider import END, STREAM_HEAD, ScriptedProvider, answer, chunk
from stage.raw import Answer
from stage.routes import at, clock_of, pooled, project_with, token_with
from stage.scripts import sends

from llm_proxy.proxy.renamed import LARGEST_ERROR

THEIRS = b"prov/x-secret"
CHAT = {
    "id": "chatcmpl-1",
    "model": THEIRS.decode(),
    "choices": [{"message": {"role": "assistant", "content": "model"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}
BODY = orjson.dumps(CHAT)
PIECES = (
    b'event: message_start\r\ndata: {"type":"message_start","message":{"model":"prov/x-secret"}}\r\n\r\n',
    b'data: {"response": {"model" : "prov/x-secret", "id": "r"}}\n\n',
    b'data: {"model":"prov/x-secret","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n',
    b"data: [DONE]\n\n",
)


@pytest.fixture
async def token(house: House, provider: ScriptedProvider) -> str:
    """Of a client who knows the model as smart."""
    return await token_with(house, at(provider.url, model_mapping={"smart": THEIRS.decode()}))


async def said(house: House, token: str, *headers: bytes, model: str = "smart", **more: Any) -> Answer:
    reply = await ask(house.url, call(token, *headers, body=orjson.dumps({**ASKING, "model": model, **more})))
    assert reply is not None
    assert THEIRS not in reply.head + reply.body and rb"prov\/x" not in reply.body
    return reply


async def test_json_comes_under_the_clients_name_and_is_counted(house: House, provider: ScriptedProvider, token: str) -> None:
    told = b'ETag: "1"\r\nContent-MD5: x\r\nDigest: x\r\nopenai-model: %b\r\nX-Other: 1\r\n' % THEIRS
    provider.script = sends(answer(BODY, extra=told))
    reply = await said(house, token)
    assert (reply.whole, orjson.loads(reply.body)) == (True, {**CHAT, "model": "smart"})
    named = [reply.header(name) for name in (b"ETag", b"Content-MD5", b"Digest", b"openai-model", b"X-Other")]
    assert named == [None, None, None, b"smart", b"1"]
    event = house.events[0]
    assert (event.model, event.model_used, event.usage.total_tokens) == ("smart", THEIRS.decode(), 7)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 64])
async def test_a_stream_comes_under_the_clients_name_wherever_it_is_cut(
    house: House, provider: ScriptedProvider, token: str, size: int
) -> None:
    whole = b"".join(PIECES)
    chunks = [chunk(whole[at : at + size]) for at in range(0, len(whole), size)]
    provider.script = sends(STREAM_HEAD, *chunks, END)
    reply = await said(house, token, stream=True)
    assert (reply.whole, reply.body) == (True, whole.replace(THEIRS, b"smart"))
    event = house.events[0]
    assert (event.stream, event.model_used, event.usage.total_tokens) == (True, THEIRS.decode(), 7)


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (
            b"application/json",
            rb'{"error": {"message": "The model `prov/x-secret` is away; prov\/x-secret, not prov/x-secrets-2"}}',
            rb'{"error": {"message": "The model `smart` is away; smart, not prov/x-secrets-2"}}',
        ),
        (b"text/plain", b"no model prov/x-secret here", b"no model smart here"),
        (
            b"text/event-stream",
            b'event: error\ndata: {"error": "prov/x-secret"}\n\n',
            b'event: error\ndata: {"error": "smart"}\n\n',
        ),
    ],
)
async def test_errors_do_not_tell_the_providers_name_either(
    house: House, provider: ScriptedProvider, token: str, kind: bytes, body: bytes, expected: bytes
) -> None:
    provider.script = sends(answer(body, kind, b"404 Not Found"))
    reply = await ask(house.url, call(token, body=b'{"model": "smart"}'))
    assert reply is not None and (reply.status, reply.body) == (404, expected)


async def test_an_error_that_is_too_large_to_be_held_arrives_whole_all_the_same(
    house: House, provider: ScriptedProvider, token: str
) -> None:
    body = b"no model prov/x-secret here" + b"." * (2 * LARGEST_ERROR)
    provider.script = sends(answer(body, b"text/plain", b"404 Not Found"))
    reply = await ask(house.url, call(token, body=b'{"model": "smart"}'))
    assert reply is not None and reply.whole and len(reply.body) == len(body.replace(THEIRS, b"smart"))


async def test_a_name_that_is_a_part_of_the_clients_is_put_in_once(house: House, provider: ScriptedProvider) -> None:
    token = await token_with(house, at(provider.url, model_mapping={"any/*": "*"}))
    provider.script = sends(answer(b'{"error": "no llama", "model": "llama"}', status=b"404 Not Found"))
    reply = await ask(house.url, call(token, body=b'{"model": "any/llama"}'))
    assert reply is not None and reply.body == b'{"error": "no any/llama", "model": "any/llama"}'


async def test_what_bears_no_type_is_read_as_json_and_what_is_no_text_is_left(
    house: House, provider: ScriptedProvider, token: str
) -> None:
    provider.script = sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
    assert orjson.loads((await said(house, token)).body)["model"] == "smart"
    provider.script = sends(answer(b'{"model":"a"}\0', b"audio/mpeg", extra=b'ETag: "1"\r\nX-Model: %b\r\n' % THEIRS))
    reply = await said(house, token)
    assert (reply.body, reply.header(b"ETag"), reply.header(b"X-Model")) == (b'{"model":"a"}\0', b'"1"', b"smart")
    assert reply.header(b"Content-Length") == b"14"


async def test_a_compressed_answer_cannot_be_renamed(house: House, provider: ScriptedProvider, token: str) -> None:
    provider.script = sends(answer(gzip.compress(BODY), extra=b"Content-Encoding: gzip\r\n"))
    reply = await said(house, token)
    assert (reply.status, code_of(reply)) == (502, "upstream_invalid_response")


async def test_a_compressed_refusal_fails_over_like_any_other(house: House, provider: ScriptedProvider) -> None:
    mapping = {"smart": THEIRS.decode()}
    refusal = answer(gzip.compress(b"{}"), status=b"503 Away", extra=b"Content-Encoding: gzip\r\n")
    alternately = [refusal, answer(BODY)]

    async def script(exchange: Any) -> None:
        await exchange.send(alternately.pop(0))

    provider.script = script
    token = await token_with(house, *[at(provider.url, model_mapping=mapping)] * 2)
    assert (await said(house, token)).status == 200


async def test_a_stored_answer_is_replayed_under_the_name_it_was_asked_by(house: House, provider: ScriptedProvider) -> None:
    clock_of(house)
    mapping = {"smart": THEIRS.decode(), "other": THEIRS.decode()}
    token = await token_with(house, at(provider.url, model_mapping=mapping))
    provider.script = sends(answer(BODY, extra=b'ETag: "1"\r\n'))
    asked = b"Cache-Control: public, max-age=60"
    for model in ("smart", "smart", "other"):
        reply = await said(house, token, asked, model=model)
        assert orjson.loads(reply.body)["model"] == model
    assert [event.cache for event in house.events] == ["stored", "hit", "stored"]
    assert (house.events[1].model, len(provider.exchanges)) == ("smart", 2)


async def test_two_projects_may_mean_two_models_by_one_name_though_they_share_what_is_stored(
    tmp_path: Any, provider: ScriptedProvider
) -> None:
    async def script(exchange: Any) -> None:
        named = exchange.request_line.split()[1].rpartition(b"/")[2]
        await exchange.send(answer(b'{"object": "%b"}' % named[-1:], extra=b"Cache-Control: public, max-age=60\r\n"))

    provider.script = script
    async with open_house(settings_for(tmp_path, HTTP_CACHE_SHARED="true")) as house:
        tokens = [await token_with(house, at(provider.url, model_mapping={"smart": name})) for name in ("m-a", "m-b")]
        replies = [await ask(house.url, call(token, path="/v1/models/smart", method="GET", body=b""), "GET") for token in tokens]
        assert [reply.body for reply in replies if reply] == [b'{"object": "a"}', b'{"object": "b"}']


async def test_a_name_that_is_no_plain_text_breaks_neither_json_nor_headers(house: House, provider: ScriptedProvider) -> None:
    await pooled(house, at(provider.url, model_mapping={"*": THEIRS.decode()}))
    token = await house.token(await project_with(house))
    name = 'a"\\b\r\nX-Evil: 1\r\n\u2028é'
    for status in (b"200 OK", b"400 Bad"):
        provider.script = sends(answer(BODY, status=status, extra=b"X-Model: %b\r\n" % THEIRS))
        reply = await said(house, token, model=name)
        assert orjson.loads(reply.body)["model"] == name
        assert reply.header(b"X-Evil") is None and reply.header(b"X-Model") is None
