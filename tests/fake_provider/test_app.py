"""The fake provider serves its answers, in peace as well as under each fault."""

import asyncio
import gzip
import io
import json
import zlib
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
import yarl

from llm_proxy.fake_provider import Faults, running

QUESTION: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]
ASKED: Any = QUESTION[1:]
ANSWER = "Hello! You said: How are you?"
CHAT = {"model": "gpt-4o", "messages": QUESTION}
CHAT_STREAM = {**CHAT, "stream": True}
MESSAGE = {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": ASKED}
MESSAGE_STREAM = {**MESSAGE, "stream": True}
RESPONSE_STREAM = {"model": "gpt-4o", "input": "How are you?", "stream": True}
COMPLETION_STREAM = {"model": "gpt-4o", "prompt": "How are you?", "stream": True}


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", "/api/v1", "/openai/deployments/gpt-4o"])
async def test_every_prefix_leads_to_the_chat(base: str, session: aiohttp.ClientSession, prefix: str) -> None:
    async with session.post(f"{base}{prefix}/chat/completions?api-version=1", json=CHAT) as reply:
        assert (await reply.json())["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("method", "path", "size"),
    [("GET", "/v1/files/f%2F1?limit=2&x=%20", 0), ("POST", "/v1/files", 3_000_000), ("DELETE", "/elsewhere", 0)],
)
async def test_any_other_call_is_described(base: str, session: aiohttp.ClientSession, method: str, path: str, size: int) -> None:
    place, _, query = path.partition("?")
    data = io.BytesIO(b"x" * size) if size else None
    async with session.request(method, yarl.URL(base + path, encoded=True), data=data) as reply:
        told = await reply.json()
    kind = "application/octet-stream" if size else ""
    assert told == {"method": method, "path": place, "query": query, "content_type": kind, "bytes": size}


async def test_described_bytes_are_those_of_the_wire(base: str, session: aiohttp.ClientSession) -> None:
    body = gzip.compress(b"x" * 1000)
    async with session.post(f"{base}/v1/files", data=body, headers={"Content-Encoding": "gzip"}) as reply:
        assert (await reply.json())["bytes"] == len(body)


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b"{}", b'{"model": 1}', b'{"model": ""}'])
async def test_body_without_a_question_is_refused(base: str, session: aiohttp.ClientSession, body: bytes) -> None:
    async with session.post(f"{base}/v1/chat/completions", data=body) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["type"] == "invalid_request_error"


async def test_prompt_of_megabytes_is_counted(base: str, session: aiohttp.ClientSession) -> None:
    body = io.BytesIO(json.dumps({"model": "gpt-4o", "prompt": "word " * 500_000}).encode())
    async with session.post(f"{base}/v1/completions", data=body) as reply:
        assert (await reply.json())["usage"]["prompt_tokens"] == 500_000


async def test_equal_requests_get_equal_bytes_and_ids_of_their_own(base: str, session: aiohttp.ClientSession) -> None:
    replies = []
    for _ in range(2):
        async with session.post(f"{base}/v1/chat/completions", json=CHAT) as reply:
            replies.append((await reply.read(), reply.headers["x-request-id"]))
    assert replies[0][0] == replies[1][0]
    assert [id for _, id in replies] == ["req_fake_000001", "req_fake_000002"]


async def test_heads_as_large_as_a_proxy_lets_through_are_read(base: str, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{base}/x?{'q' * 16_000}", headers={"X-Long": "h" * 40_000}) as reply:
        assert len((await reply.json())["query"]) == 16_000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"Authorization": "Bearer sk-real"}, 200, id="bearer"),
        pytest.param({"x-api-key": "sk-real"}, 200, id="x-api-key"),
        pytest.param({"api-key": "sk-real"}, 200, id="api-key"),
        pytest.param({}, 401, id="none"),
        pytest.param({"Authorization": "Bearer sk-other"}, 401, id="another"),
        pytest.param({"Authorization": "Bearer grüße"}, 401, id="not ASCII"),
        pytest.param({"Authorization": "Bearer sk-real", "x-api-key": "the client's token"}, 401, id="another beside it"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
async def test_required_key_is_the_only_credential(
    session: aiohttp.ClientSession, path: str, headers: dict[str, str], status: int
) -> None:
    async with running(require_key="sk-real") as base, session.post(base + path, json=CHAT, headers=headers) as reply:
        assert reply.status == status


async def test_wrong_key_is_told_in_each_dialect() -> None:
    async with running(require_key="sk-real") as base:
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="sk-wrong", max_retries=0) as oai:
            with pytest.raises(openai.AuthenticationError) as refused:
                await oai.models.list()
        async with anthropic.AsyncAnthropic(base_url=base, api_key="sk-wrong", max_retries=0) as claude:
            with pytest.raises(anthropic.AuthenticationError) as denied:
                await claude.messages.create(model="claude-haiku-4-5", max_tokens=64, messages=ASKED)
    assert refused.value.code == "invalid_api_key"
    body: Any = denied.value.body
    assert body["error"]["type"] == "authentication_error"


async def test_delay_holds_back_the_head(base: str, session: aiohttp.ClientSession) -> None:
    clock = asyncio.get_running_loop().time
    begun = clock()
    async with session.post(f"{base}/v1/chat/completions", json=CHAT, headers={"X-Fake-Delay": "0.1"}) as reply:
        assert clock() - begun >= 0.1
        assert reply.status == 200


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (429, "requests", openai.RateLimitError),
        (400, "invalid_request_error", openai.BadRequestError),
        (500, "server_error", openai.InternalServerError),
    ],
)
async def test_status_is_an_error_in_openais_shape(
    oai: openai.AsyncOpenAI, status: int, kind: str, error: type[openai.APIStatusError]
) -> None:
    headers = {"X-Fake-Status": str(status), "X-Fake-Retry-After": "7"}
    with pytest.raises(error) as caught:
        await oai.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True, extra_headers=headers)
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert caught.value.response.headers["Retry-After"] == "7"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(529, "overloaded_error"), (429, "rate_limit_error"), (503, "api_error"), (413, "request_too_large"), (422, None)],
)
async def test_status_is_an_error_in_anthropics_shape(claude: anthropic.AsyncAnthropic, status: int, kind: str | None) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        await claude.messages.create(**MESSAGE, extra_headers={"X-Fake-Status": str(status)})
    body: Any = caught.value.body
    assert (caught.value.status_code, body["error"]["type"]) == (status, kind or "invalid_request_error")
    assert "Retry-After" not in caught.value.response.headers


STREAMS = [
    pytest.param("/v1/chat/completions", CHAT_STREAM, id="chat"),
    pytest.param("/v1/completions", COMPLETION_STREAM, id="completion"),
    pytest.param("/v1/responses", RESPONSE_STREAM, id="response"),
    pytest.param("/v1/messages", MESSAGE_STREAM, id="message"),
]


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_stream_is_one_event_a_chunk(base: str, session: aiohttp.ClientSession, path: str, body: Any) -> None:
    async with session.post(base + path, json=body, headers={"X-Fake-Drip": "0.001"}) as reply:
        assert reply.content_type == "text/event-stream"
        chunks = [chunk async for chunk, whole in reply.content.iter_chunks() if whole]
    assert all(chunk.endswith(b"\n\n") and chunk.count(b"data: ") == 1 for chunk in chunks)
    events = [chunk.strip().split(b"data: ")[1] for chunk in chunks]
    if path in ("/v1/chat/completions", "/v1/completions"):
        assert events.pop() == b"[DONE]"
    else:
        assert [chunk.split(b"\n")[0] for chunk in chunks] == [b"event: " + json.loads(e)["type"].encode() for e in events]
    assert all(isinstance(json.loads(event), dict) for event in events)


@pytest.mark.parametrize(("path", "body"), STREAMS)
@pytest.mark.parametrize("cut", [1, 3, 1000])
async def test_cut_stream_has_so_many_events_and_no_end(
    base: str, session: aiohttp.ClientSession, path: str, body: Any, cut: int
) -> None:
    whole = await (await session.post(base + path, json=body)).read()
    got = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with session.post(base + path, json=body, headers={"X-Fake-Cut": str(cut)}) as reply:
            async for chunk in reply.content.iter_any():
                got += chunk
    assert got.count(b"\n\n") == min(cut, whole.count(b"\n\n"))
    assert whole.startswith(got)


@pytest.mark.parametrize(("cut", "size"), [(1, 64), (2, 128)])
async def test_cut_body_has_so_many_pieces_of_its_length(base: str, session: aiohttp.ClientSession, cut: int, size: int) -> None:
    got = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with session.post(f"{base}/v1/chat/completions", json=CHAT, headers={"X-Fake-Cut": str(cut)}) as reply:
            assert int(reply.headers["Content-Length"]) > size
            async for chunk in reply.content.iter_any():
                got += chunk
    assert len(got) == size


async def test_cut_body_is_never_whole(base: str, session: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        async with session.post(f"{base}/v1/chat/completions", json=CHAT, headers={"X-Fake-Cut": "1000"}) as reply:
            await reply.read()


@pytest.mark.parametrize("body", [CHAT, CHAT_STREAM], ids=["body", "stream"])
async def test_cut_at_nothing_sends_no_head(base: str, session: aiohttp.ClientSession, body: Any) -> None:
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await session.post(f"{base}/v1/chat/completions", json=body, headers={"X-Fake-Cut": "0"})


async def test_cut_stream_fails_in_the_real_client(oai: openai.AsyncOpenAI) -> None:
    stream = await oai.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True, extra_headers={"X-Fake-Cut": "3"})
    with pytest.raises(openai.APIConnectionError):
        async for _ in stream:
            pass


async def test_drip_waits_between_events(base: str, session: aiohttp.ClientSession) -> None:
    clock = asyncio.get_running_loop().time
    headers = {"X-Fake-Drip": "0.03", "X-Fake-Words": "2"}
    async with session.post(f"{base}/v1/chat/completions", json=CHAT_STREAM, headers=headers) as reply:
        arrivals = [clock() async for _ in reply.content.iter_any()]
    assert len(arrivals) == 5
    # A late arrival shortens the gap that follows it, so the sum is what holds.
    assert arrivals[-1] - arrivals[0] >= 0.03 * 3


async def test_bad_json_breaks_the_body(base: str, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{base}/v1/chat/completions", json=CHAT, headers={"X-Fake-Bad-JSON": "1"}) as reply:
        assert (reply.status, reply.content_type) == (200, "application/json")
        with pytest.raises(json.JSONDecodeError):
            json.loads(await reply.read())


async def test_bad_json_breaks_every_event_but_not_the_framing(base: str, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{base}/v1/chat/completions", json=CHAT_STREAM, headers={"X-Fake-Bad-JSON": "1"}) as reply:
        *events, done = (await reply.read()).removesuffix(b"\n\n").split(b"\n\n")
    assert len(events) == 8
    for event in events:
        with pytest.raises(json.JSONDecodeError):
            json.loads(event.removeprefix(b"data: "))
    assert b"[DONE]" not in done


@pytest.mark.parametrize(("stall", "body"), [(0, CHAT_STREAM), (2, CHAT_STREAM), (1, CHAT)])
async def test_stall_sends_so_many_chunks_until_the_client_leaves(base: str, stall: int, body: Any) -> None:
    before = asyncio.all_tasks()
    reader, writer = await connect(base, "/v1/chat/completions", body, {"X-Fake-Stall": str(stall)})
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    for _ in range(stall if body is CHAT_STREAM else 0):
        assert (await reader.readuntil(b"\n\n\r\n")).count(b"data: ") == 1
    if body is CHAT:
        assert len(await reader.readexactly(64)) == 64
    # The connection's task at the provider is what the client's leaving must end.
    tasks = asyncio.all_tasks() - before
    assert tasks
    writer.close()
    await writer.wait_closed()
    _, running_on = await asyncio.wait(tasks, timeout=2)
    assert not running_on


async def connect(base: str, path: str, body: Any, headers: dict[str, str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *(f"{k}: {v}" for k, v in headers.items())]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    return reader, writer


async def test_words_set_the_length_of_the_answer(oai: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
    chat = await oai.chat.completions.create(model="gpt-4o", messages=QUESTION, extra_headers={"X-Fake-Words": "500"})
    turn = await claude.messages.create(**MESSAGE, extra_headers={"X-Fake-Words": "2"})
    assert chat.usage is not None
    assert chat.usage.completion_tokens == len((chat.choices[0].message.content or "").split()) == 500
    assert turn.usage.output_tokens == 2


async def test_gzip_needs_a_client_that_accepts_it(base: str, session: aiohttp.ClientSession) -> None:
    url, fault = f"{base}/v1/chat/completions", {"X-Fake-Gzip": "1"}
    async with session.post(url, json=CHAT, headers={**fault, "Accept-Encoding": "identity"}) as reply:
        assert "Content-Encoding" not in reply.headers
        plain = await reply.read()
    async with session.post(url, json=CHAT, headers={**fault, "Accept-Encoding": "gzip, deflate"}) as reply:
        assert reply.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(await reply.read()) == plain


async def test_gzipped_events_are_readable_as_they_come(base: str, session: aiohttp.ClientSession) -> None:
    headers = {"X-Fake-Gzip": "1", "X-Fake-Stall": "2", "Accept-Encoding": "gzip"}
    inflate, got = zlib.decompressobj(wbits=31), b""
    async with session.post(f"{base}/v1/chat/completions", json=CHAT_STREAM, headers=headers) as reply:
        while got.count(b"\n\n") < 2:
            got += inflate.decompress(await reply.content.readany())
    assert not inflate.eof


async def test_real_client_reads_a_gzipped_stream(oai: openai.AsyncOpenAI) -> None:
    async with oai.chat.completions.stream(model="gpt-4o", messages=QUESTION, extra_headers={"X-Fake-Gzip": "1"}) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER


async def test_defaults_of_the_application_are_faults_too(session: aiohttp.ClientSession) -> None:
    async with running(faults=Faults(status=503, retry_after="3")) as base:
        async with session.get(f"{base}/v1/models") as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (503, "3")
        async with session.get(f"{base}/v1/models", headers={"X-Fake-Status": "0"}) as reply:
            assert reply.status == 200


@pytest.mark.parametrize(("host", "prefix"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")], ids=["IPv4", "IPv6"])
async def test_base_url_is_where_it_listens(session: aiohttp.ClientSession, host: str, prefix: str) -> None:
    async with running(host) as base, session.get(f"{base}/v1/models") as reply:
        assert base.startswith(prefix)
        assert reply.status == 200


async def test_taken_port_fails_at_the_start(base: str) -> None:
    with pytest.raises(OSError, match="in use"):
        async with running(port=int(base.rpartition(":")[2])):
            pass


async def test_stop_cuts_open_streams_and_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    async with running() as base:
        streams = [await connect(base, "/v1/chat/completions", CHAT_STREAM, {"X-Fake-Stall": "1"}) for _ in range(20)]
        for reader, _ in streams:
            await reader.readuntil(b"\n\n")
        handlers = asyncio.all_tasks() - before
        assert len(handlers) >= 20
    assert not any(task in asyncio.all_tasks() for task in handlers)
    for reader, writer in streams:
        assert b"0\r\n\r\n" not in await reader.read()
        writer.close()
        await writer.wait_closed()
