"""What the fake provider answers, whole or as a stream of events."""

import base64
import hashlib
import itertools
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import orjson

from llm_proxy.fake_provider.calls import Call, Json, text_of
from llm_proxy.fake_provider.refusals import Refused

MODELS = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small", "claude-sonnet-4-5", "claude-haiku-4-5")
HARMS = ["harassment", "hate", "illicit", "self-harm", "sexual", "violence"]
HARMS += ["harassment/threatening", "hate/threatening", "illicit/violent", "self-harm/instructions", "self-harm/intent"]
HARMS += ["sexual/minors", "violence/graphic"]

# Equal requests get equal bytes, so the time in a reply is a constant.
CREATED, CREATED_AT = 1_767_225_600, "2026-01-01T00:00:00Z"
DIMENSIONS = 1536


def _usage(call: Call, given: str, made: str, **details: Json) -> Json:
    spent = len(call.words)
    return {given: call.input_tokens, made: spent, "total_tokens": call.input_tokens + spent, **details}


def _choices(call: Call, kind: str, choices: list[Json]) -> Json:
    return {"id": call.id, "object": kind, "created": CREATED, "model": call.model, "choices": choices}


def _choice(finish: str | None = "stop", **said: object) -> Json:
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish}


def _chat(call: Call) -> Json:
    choice = _choice(message={"role": "assistant", "content": call.text, "refusal": None})
    return {**_choices(call, "chat.completion", [choice]), "usage": _usage(call, "prompt_tokens", "completion_tokens")}


def _completion(call: Call) -> Json:
    choice = _choice(text=call.text)
    return {**_choices(call, "text_completion", [choice]), "usage": _usage(call, "prompt_tokens", "completion_tokens")}


def _chat_events(call: Call) -> Iterator[Json]:
    first = _choice(None, delta={"role": "assistant", "content": ""})
    words = (_choice(None, delta={"content": word}) for word in call.words)
    return _chunks(call, "chat.completion.chunk", itertools.chain([first], words, [_choice(delta={})]))


def _completion_events(call: Call) -> Iterator[Json]:
    words = (_choice(None, text=word) for word in call.words)
    return _chunks(call, "text_completion", itertools.chain(words, [_choice(text="")]))


def _chunks(call: Call, kind: str, choices: Iterable[Json]) -> Iterator[Json]:
    options = call.body.get("stream_options")
    counted = isinstance(options, dict) and options.get("include_usage") is True
    tail = {"usage": None} if counted else {}
    for choice in choices:
        yield {**_choices(call, kind, [choice]), **tail}
    if counted:
        yield {**_choices(call, kind, []), "usage": _usage(call, "prompt_tokens", "completion_tokens")}


def _embeddings(call: Call) -> Json:
    source, size = call.body.get("input"), call.body.get("dimensions", DIMENSIONS)
    if not source or not isinstance(source, str | list):
        raise Refused(400, "input must be a text, or a list that is not empty.")
    if not isinstance(size, int) or not 1 <= size <= 4096:
        raise Refused(400, "dimensions must be between 1 and 4096.")
    items = [source] if isinstance(source, str) or isinstance(source[0], int) else source
    packed = call.body.get("encoding_format") == "base64"
    data = [{"object": "embedding", "index": n, "embedding": _vector(item, size, packed)} for n, item in enumerate(items)]
    tokens = sum(len(item if isinstance(item, list) else text_of(item).split()) for item in items)
    return {"object": "list", "data": data, "model": call.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _vector(item: object, size: int, packed: bool) -> str | tuple[float, ...]:
    raw = [byte - 127.5 for byte in hashlib.shake_128(orjson.dumps(item)).digest(size)]
    length = math.hypot(*raw)
    floats = struct.pack(f"<{size}f", *(value / length for value in raw))
    return base64.b64encode(floats).decode() if packed else struct.unpack(f"<{size}f", floats)


def _moderations(call: Call) -> Json:
    ratings = {"categories": dict.fromkeys(HARMS, False), "category_scores": dict.fromkeys(HARMS, 0.0)}
    result = {"flagged": False, **ratings, "category_applied_input_types": {harm: ["text"] for harm in HARMS}}
    source = call.body.get("input")
    count = len(source) if isinstance(source, list) else 1
    return {"id": call.id, "model": call.model or "omni-moderation-latest", "results": [result] * count}


def _model(call: Call) -> Json:
    openai = {"id": call.model, "object": "model", "created": CREATED, "owned_by": "fake-provider"}
    return {**openai, "type": "model", "display_name": call.model, "created_at": CREATED_AT, "lifecycle": "active"}


def _models(call: Call) -> Json:
    ends = {"has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}
    return {"object": "list", "data": [_model(replace(call, model=name)) for name in MODELS], **ends}


def _response(call: Call) -> Json:
    given: Json = {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}
    usage = _usage(call, "input_tokens", "output_tokens", **given, output_tokens_details={"reasoning_tokens": 0})
    return _state(call, "completed", [_item(call, "completed", [_part(call.text)])], usage)


def _state(call: Call, status: str, output: list[Json], usage: Json | None = None) -> Json:
    head = {"id": call.id, "object": "response", "created_at": CREATED, "status": status, "model": call.model}
    rules = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None, "incomplete_details": None}
    return {**head, **rules, "output": output, "usage": usage}


def _item(call: Call, status: str, content: list[Json]) -> Json:
    return {"type": "message", "id": f"msg_{call.id}", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_events(call: Call) -> Iterator[Json]:
    item: Json = {"output_index": 0}
    part: Json = {"item_id": f"msg_{call.id}", **item, "content_index": 0}
    begun, words, whole = _state(call, "in_progress", []), call.words, _part(call.text)
    events: Iterable[tuple[str, Json]] = itertools.chain(
        [("created", {"response": begun}), ("in_progress", {"response": begun})],
        [("output_item.added", {**item, "item": _item(call, "in_progress", [])})],
        [("content_part.added", {**part, "part": _part("")})],
        (("output_text.delta", {**part, "delta": word, "logprobs": []}) for word in words),
        [("output_text.done", {**part, "text": call.text, "logprobs": []})],
        [("content_part.done", {**part, "part": whole})],
        [("output_item.done", {**item, "item": _item(call, "completed", [whole])})],
        [("completed", {"response": _response(call)})],
    )
    for number, (name, data) in enumerate(events):
        yield {"type": f"response.{name}", **data, "sequence_number": number}


def _message(call: Call) -> Json:
    return _turn(call, [{"type": "text", "text": call.text}], "end_turn", len(call.words))


def _turn(call: Call, content: list[Json], stop_reason: str | None, output_tokens: int) -> Json:
    cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    usage = {"input_tokens": call.input_tokens, **cache, "output_tokens": output_tokens}
    head = {"id": call.id, "type": "message", "role": "assistant", "model": call.model, "content": content}
    return {**head, "stop_reason": stop_reason, "stop_sequence": None, "usage": usage}


def _message_events(call: Call) -> Iterator[Json]:
    yield {"type": "message_start", "message": _turn(call, [], None, 1)}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "ping"}
    for word in call.words:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
    yield {"type": "content_block_stop", "index": 0}
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": ended, "usage": {"output_tokens": len(call.words)}}
    yield {"type": "message_stop"}


class Endpoint(NamedTuple):
    """How to answer: whole, or by events, named or not, where a stream is asked for."""

    reply: Callable[[Call], Json]
    events: Callable[[Call], Iterator[Json]] | None = None
    named: bool = False
    needs_model: bool = True


ENDPOINTS: Mapping[str, Endpoint] = {
    "POST chat/completions": Endpoint(_chat, _chat_events),
    "POST completions": Endpoint(_completion, _completion_events),
    "POST embeddings": Endpoint(_embeddings),
    "POST messages": Endpoint(_message, _message_events, named=True),
    "POST messages/count_tokens": Endpoint(lambda call: {"input_tokens": call.input_tokens}),
    "POST moderations": Endpoint(_moderations, needs_model=False),
    "POST responses": Endpoint(_response, _response_events, named=True),
    "GET models": Endpoint(_models, needs_model=False),
    "GET models/*": Endpoint(_model),
}


def frames(events: Iterable[Json], named: bool) -> Iterator[bytes]:
    """Events as they go over the wire: named by their type, or closed by OpenAI's `[DONE]`."""
    for event in events:
        data = b"data: %b\n\n" % orjson.dumps(event)
        yield b"event: %b\n%b" % (event["type"].encode(), data) if named else data
    if not named:
        yield b"data: [DONE]\n\n"
