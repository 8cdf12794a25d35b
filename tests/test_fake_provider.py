"""The fake provider convinces the real clients, in peace as well as under each fault."""

import asyncio
import gzip
import io
import itertools
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
import yarl

from llm_proxy.fake_provider import (
    NO_SUCH_MODEL,
    Faults,
    Refused,
    answer_words,
    find_route,
    last_user_text,
    read_faults,
    running,
    text_of,
)

QUESTION: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]
ASKED: Any = QUESTION[1:]
ANSWER = "Hello! You said: How are you?"
CHAT = {"model": "gpt-4o", "messages": QUESTION}
CHAT_STREAM = {**CHAT, "stream": True}
MESSAGE = {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": ASKED}
MESSAGE_STREAM = {**MESSAGE, "stream": True}
RESPONSE_STREAM = {"model": "gpt-4o", "input": "How are you?", "stream": True}
COMPLETION_STREAM = {"model": "gpt-4o", "prompt": "How are you?", "stream": True}


@pytest.fixture
async def base() -> AsyncIterator[str]:
    async with running() as url:
        yield url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


@pytest.fixture
async def oai(base: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="sk-any", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(base: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=base, api_key="sk-any", max_retries=0) as client:
        yield client


# The clients of OpenAI


async def test_openai_chat_echoes_the_last_user_message_with_counted_usage(oai: openai.AsyncOpenAI) -> None:
    reply = await oai.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert (reply.model, reply.choices[0].message.content, reply.choices[0].finish_reason) == ("gpt-4o", ANSWER, "stop")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (5, 6, 11)


async def test_openai_chat_streams_word_by_word_without_usage_unless_asked(oai: openai.AsyncOpenAI) -> None:
    chunks = [chunk async for chunk in await oai.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True)]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert pieces == ["", "Hello!", " You", " said:", " How", " are", " you?", ""]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 7 + ["stop"]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


async def test_openai_chat_stream_ends_with_usage_and_no_choices_when_asked(oai: openai.AsyncOpenAI) -> None:
    stream = await oai.chat.completions.create(
        model="gpt-4o", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 11


async def test_openai_chat_stream_assembles_to_the_unstreamed_answer(oai: openai.AsyncOpenAI) -> None:
    async with oai.chat.completions.stream(model="gpt-4o", messages=QUESTION) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER


async def test_openai_completion_comes_whole_and_in_pieces(oai: openai.AsyncOpenAI) -> None:
    whole = await oai.completions.create(model="gpt-4o", prompt="How are you?")
    stream = await oai.completions.create(
        model="gpt-4o", prompt="How are you?", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks[:-1]) == ANSWER
    assert whole.usage == chunks[-1].usage
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 3


async def test_openai_embeddings_are_equal_unit_vectors_in_both_encodings(oai: openai.AsyncOpenAI) -> None:
    packed = await oai.embeddings.create(model="text-embedding-3-small", input=["one text", "another"])
    floats = await oai.embeddings.create(model="text-embedding-3-small", input=["one text", "another"], encoding_format="float")
    assert [item.embedding for item in packed.data] == [item.embedding for item in floats.data]
    first, second = (item.embedding for item in floats.data)
    assert first != second
    assert len(first) == 1536
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-6)
    assert packed.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("given", "vectors", "tokens"),
    [
        pytest.param("a b c", 1, 3, id="text"),
        pytest.param([1, 2, 3, 4], 1, 4, id="tokens"),
        pytest.param([[1, 2], [3]], 2, 3, id="lists of tokens"),
    ],
)
async def test_openai_embeddings_take_every_kind_of_input(oai: openai.AsyncOpenAI, given: Any, vectors: int, tokens: int) -> None:
    reply = await oai.embeddings.create(model="text-embedding-3-small", input=given, dimensions=8)
    assert [len(item.embedding) for item in reply.data] == [8] * vectors
    assert reply.usage.prompt_tokens == tokens


@pytest.mark.parametrize(
    "change", [{"input": []}, {"input": 7}, {"input": "x", "dimensions": 0}, {"input": "x", "dimensions": 5000}]
)
async def test_openai_embeddings_refuse_what_they_cannot_turn_into_vectors(oai: openai.AsyncOpenAI, change: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        await oai.embeddings.create(model="text-embedding-3-small", **change)


async def test_openai_models_are_listed_and_found(oai: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in oai.models.list()]
    assert "gpt-4o" in names
    assert (await oai.models.retrieve("vendor/any-model")).id == "vendor/any-model"


async def test_openai_moderation_flags_nothing(oai: openai.AsyncOpenAI) -> None:
    reply = await oai.moderations.create(input=["a", "b"])
    assert [result.flagged for result in reply.results] == [False, False]
    assert reply.results[0].categories.self_harm_intent is False
    assert reply.results[0].category_scores.sexual_minors == 0


async def test_openai_response_carries_text_and_usage(oai: openai.AsyncOpenAI) -> None:
    reply = await oai.responses.create(model="gpt-4o", instructions="Be brief.", input=ASKED)
    assert (reply.status, reply.output_text) == ("completed", ANSWER)
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.total_tokens) == (5, 6, 11)


async def test_openai_response_streams_its_events_in_order(oai: openai.AsyncOpenAI) -> None:
    events: list[Any] = [e async for e in await oai.responses.create(model="gpt-4o", input="How are you?", stream=True)]
    kinds = [kind.removeprefix("response.") for kind, _ in itertools.groupby(event.type for event in events)]
    opening = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
    assert kinds == [*opening, "output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert events[-1].response.usage.output_tokens == 6


async def test_openai_response_stream_assembles_to_the_unstreamed_answer(oai: openai.AsyncOpenAI) -> None:
    async with oai.responses.stream(model="gpt-4o", input="How are you?") as stream:
        final = await stream.get_final_response()
    assert final.output_text == ANSWER


async def test_azure_client_names_the_model_in_the_path(base: str) -> None:
    async with openai.AsyncAzureOpenAI(azure_endpoint=base, api_key="k", api_version="2024-10-21", max_retries=0) as azure:
        reply = await azure.chat.completions.create(model="my-deployment", messages=QUESTION)
        listed = [model.id async for model in azure.models.list()]
    assert (reply.model, reply.choices[0].message.content) == ("my-deployment", ANSWER)
    assert "gpt-4o" in listed


async def test_openai_unknown_model_is_an_error_with_its_code(oai: openai.AsyncOpenAI) -> None:
    for call in (oai.chat.completions.create(model=NO_SUCH_MODEL, messages=QUESTION), oai.models.retrieve(NO_SUCH_MODEL)):
        with pytest.raises(openai.NotFoundError) as caught:
            await call
        assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")


# The client of Anthropic


async def test_anthropic_message_echoes_with_counted_usage(claude: anthropic.AsyncAnthropic) -> None:
    reply = await claude.messages.create(model="claude-haiku-4-5", max_tokens=64, system="Be brief.", messages=ASKED)
    assert [block.text for block in reply.content if block.type == "text"] == [ANSWER]
    assert (reply.stop_reason, reply.usage.input_tokens, reply.usage.output_tokens) == ("end_turn", 5, 6)
    assert reply._request_id == "req_fake_000001"


async def test_anthropic_stream_opens_and_closes_with_usage(claude: anthropic.AsyncAnthropic) -> None:
    stream = await claude.messages.create(model="claude-haiku-4-5", max_tokens=64, messages=ASKED, stream=True)
    events: list[Any] = [event async for event in stream]
    kinds = [kind for kind, _ in itertools.groupby(event.type for event in events)]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds == ["message_start", *block, "message_delta", "message_stop"]
    assert (events[0].message.usage.input_tokens, events[0].message.usage.output_tokens) == (3, 1)
    assert (events[-2].usage.output_tokens, events[-2].delta.stop_reason) == (6, "end_turn")


async def test_anthropic_stream_assembles_to_the_unstreamed_answer(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.messages.stream(model="claude-haiku-4-5", max_tokens=64, messages=ASKED) as stream:
        text = await stream.get_final_text()
        final = await stream.get_final_message()
    assert text == ANSWER
    assert (final.usage.input_tokens, final.usage.output_tokens) == (3, 6)


async def test_anthropic_counts_tokens_and_lists_models(claude: anthropic.AsyncAnthropic) -> None:
    assert (await claude.messages.count_tokens(model="claude-haiku-4-5", messages=ASKED)).input_tokens == 3
    models = [model async for model in claude.models.list()]
    assert "claude-haiku-4-5" in [model.id for model in models]
    assert models[0].created_at.year == 2026


async def test_anthropic_unknown_model_is_an_error_of_its_dialect(claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        await claude.messages.create(model=NO_SUCH_MODEL, max_tokens=64, messages=ASKED)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"], body["request_id"]) == ("error", "not_found_error", "req_fake_000001")


# Routes


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", ("chat/completions", "")),
        ("/openai/v1/chat/completions", ("chat/completions", "")),
        ("/api/v1/chat/completions", ("chat/completions", "")),
        ("/anthropic/v1/messages/count_tokens", ("messages/count_tokens", "")),
        ("/openai/deployments/gpt-4o/chat/completions", ("chat/completions", "gpt-4o")),
        ("/openai/deployments/v1/embeddings", ("embeddings", "v1")),
        ("/openai/responses", ("responses", "")),
        ("/v1/models", ("models", "")),
        ("/v1/models/openai/gpt-4o", ("models/*", "openai/gpt-4o")),
        ("/v1", ("", "")),
        ("/v12/models", ("", "")),
        ("/", ("", "")),
    ],
)
def test_route_is_what_follows_the_prefix(path: str, route: tuple[str, str]) -> None:
    assert find_route(path) == route


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


# What is said


@pytest.mark.parametrize(
    ("source", "text"),
    [
        pytest.param("plain", "plain", id="text"),
        pytest.param([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a", id="not the assistant"),
        pytest.param([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}], "a", id="parts"),
        pytest.param(["a", "b"], "a b", id="prompts"),
        pytest.param([1, None, {"role": "tool"}], "", id="nothing"),
        pytest.param(None, "", id="absent"),
    ],
)
def test_last_user_text(source: object, text: str) -> None:
    assert last_user_text(source) == text


def test_text_of_joins_any_nesting() -> None:
    assert text_of(["a", [{"content": [{"text": "b"}]}], 7, None]) == "a b"


@pytest.mark.parametrize(
    ("prompt", "wanted", "text"),
    [
        ("Grüße\n  an alle \n", 0, "Hello! You said: Grüße\n  an alle"),
        ("  ", 0, "Hello! You said: nothing that I can read."),
        ("a b c", 4, "Hello! You said: a"),
        ("a", 8, "Hello! You said: a and so on and"),
    ],
)
def test_answer_words(prompt: str, wanted: int, text: str) -> None:
    words = answer_words(prompt, wanted)
    assert "".join(words) == text
    assert len(words) == len(text.split())


def test_answer_to_a_long_prompt_has_an_end() -> None:
    assert len(answer_words("word " * 100_000, 0)) == 200


# Credentials


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


# Faults


def test_headers_of_a_request_win_over_the_defaults() -> None:
    headers = {"x-fake-delay": "0.5", "X-Fake-Bad-JSON": "1", "X-Fake-Cut": "0", "X-Fake-Gzip": "0", "Accept": "*/*"}
    told = read_faults({**headers, "X-Fake-Retry-After": "7"}, Faults(delay=9, words=3, gzip=True))
    assert told == Faults(delay=0.5, words=3, bad_json=True, cut=0, gzip=False, retry_after="7")


def test_without_fault_headers_the_defaults_hold() -> None:
    defaults = Faults(drip=1)
    assert read_faults({"X-Fakery": "1", "Accept": "*/*"}, defaults) is defaults


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("X-Fake-Delay", "soon"),
        ("X-Fake-Delay", "nan"),
        ("X-Fake-Delay", "inf"),
        ("X-Fake-Cut", "-1"),
        ("X-Fake-Stall", "1.5"),
        ("X-Fake-Words", "999999999"),
        ("X-Fake-Oops", "1"),
        ("X-Fake-", "1"),
        ("X-Fake-Gzip", ""),
    ],
)
def test_unusable_fault_header_is_refused(name: str, text: str) -> None:
    with pytest.raises(Refused) as caught:
        read_faults({name: text}, Faults())
    assert caught.value.status == 400


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


# Start as well as stop


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
