"""The real clients take the fake provider's answers for those of the provider it stands in for."""

import itertools
from typing import Any

import anthropic
import openai
import pytest

from llm_proxy.fake_provider.calls import NO_SUCH_MODEL
from llm_proxy.fake_provider.replies import frames

QUESTION: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]
ASKED: Any = QUESTION[1:]
ANSWER = "Hello! You said: How are you?"


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


@pytest.mark.parametrize(
    ("named", "wire"),
    [
        pytest.param(True, b'event: ping\ndata: {"type":"ping"}\n\n', id="named"),
        pytest.param(False, b'data: {"type":"ping"}\n\ndata: [DONE]\n\n', id="with DONE"),
    ],
)
def test_frames_are_event_stream(named: bool, wire: bytes) -> None:
    assert b"".join(frames([{"type": "ping"}], named)) == wire
