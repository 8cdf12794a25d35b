"""The JSON that a streamed call would have been answered with, had it not been streamed."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

Json = dict[str, Any]

_BLANK = re.compile(r"\n\n+")
# Of a delta, these come whole and replace each other; other texts are pieces to be joined.
_WHOLE = frozenset({"role", "id", "type", "index", "status"})


def reply_of(event: Mapping[str, Any]) -> Any:
    """The reply that an event captured, as JSON where it is; a stream is put together. None when there is none."""
    text = event.get("reply_body")
    if event.get("stream") and isinstance(text, str) and (assembled := assemble(text)) is not None:
        return assembled
    return json_of(text)


def json_of(text: object) -> Any:
    """A captured body decoded, the text itself when it is no JSON, None when there is none."""
    if not isinstance(text, str) or not text:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def assemble(stream: str) -> Json | None:
    """Put a stream of any dialect together; a stream cut short gives what had come. None when it is none that is known."""
    payloads = list(payloads_of(stream))
    for payload in payloads:
        kind = str(payload.get("object") or payload.get("type") or "")
        for beginning, dialect in _DIALECTS:
            if kind.startswith(beginning):
                return dialect(payloads)
    return None


def payloads_of(stream: str) -> Iterator[Json]:
    """The JSON objects of a stream's events; what is none is left out."""
    text = stream.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for event in _BLANK.split(text):
        lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:")]
        try:
            payload = orjson.loads("\n".join(lines)) if lines else None
        except orjson.JSONDecodeError:
            continue
        if isinstance(payload, dict):
            yield payload


def _merge(whole: Json, delta: Mapping[str, Any]) -> None:
    """Add a delta: texts are joined, numbered parts go to their number, the rest replaces."""
    for key, value in delta.items():
        before = whole.get(key)
        if isinstance(value, str) and isinstance(before, str) and key not in _WHOLE:
            whole[key] = before + value
        elif isinstance(value, dict):
            _merge(_object_at(whole, key), value)
        elif isinstance(value, list):
            _merge_list(whole, key, value)
        elif value is not None or key not in whole:
            whole[key] = value


def _object_at(whole: Json, key: str) -> Json:
    if not isinstance(whole.get(key), dict):
        whole[key] = {}
    found: Json = whole[key]
    return found


def _merge_list(whole: Json, key: str, values: list[Any]) -> None:
    if not isinstance(whole.get(key), list):
        whole[key] = []
    parts: list[Any] = whole[key]
    for value in values:
        number = value.get("index") if isinstance(value, dict) else None
        match = [part for part in parts if isinstance(part, dict) and part.get("index") == number]
        if number is None or not match:
            parts.append({} if number is not None else value)
        if number is not None:
            _merge(match[0] if match else parts[-1], value)


def _objects(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _choices(payloads: list[Json], add: Callable[[Json, Json], None]) -> tuple[Json, list[Json]]:
    """The fields around the choices, and the choices by their numbers, each made by `add` from its pieces."""
    around: Json = {}
    choices: dict[int, Json] = {}
    for payload in payloads:
        around.update({key: value for key, value in payload.items() if key not in ("choices", "usage", "obfuscation", "error")})
        if isinstance(payload.get("usage"), dict):
            around["usage"] = payload["usage"]
        for piece in _objects(payload.get("choices")):
            index = piece.get("index", 0)
            if type(index) is int:
                add(choices.setdefault(index, {"index": index}), piece)
    return around, [choices[index] for index in sorted(choices)]


def _add_rest(choice: Json, piece: Json) -> None:
    """What a choice has besides its words."""
    if isinstance(piece.get("logprobs"), dict):
        _merge(_object_at(choice, "logprobs"), piece["logprobs"])
    if piece.get("finish_reason") is not None:
        choice["finish_reason"] = piece["finish_reason"]


def _chat(payloads: list[Json]) -> Json:
    def add(choice: Json, piece: Json) -> None:
        message = choice.setdefault("message", {"role": "assistant", "content": None})
        if isinstance(piece.get("delta"), dict):
            _merge(message, piece["delta"])
        _add_rest(choice, piece)

    around, choices = _choices(payloads, add)
    for choice in choices:
        choice.setdefault("logprobs", None)
        choice.setdefault("finish_reason", None)
        for call in _objects(choice["message"].get("tool_calls")):
            call.pop("index", None)
    return {**around, "object": "chat.completion", "choices": choices}


def _completion(payloads: list[Json]) -> Json:
    def add(choice: Json, piece: Json) -> None:
        choice["text"] = choice.get("text", "") + str(piece.get("text") or "")
        _add_rest(choice, piece)

    around, choices = _choices(payloads, add)
    for choice in choices:
        choice.setdefault("logprobs", None)
        choice.setdefault("finish_reason", None)
    return {**around, "object": "text_completion", "choices": choices}


def _response(payloads: list[Json]) -> Json:
    """OpenAI's responses repeat the whole in the last event; only a stream cut short needs its pieces."""
    whole: Json = {}
    items: dict[int, Json] = {}
    for payload in payloads:
        kind, index = str(payload.get("type")), payload.get("output_index")
        if isinstance(payload.get("response"), dict):
            whole = payload["response"]
            if kind in ("response.completed", "response.incomplete", "response.failed"):
                return whole
        elif isinstance(payload.get("item"), dict) and type(index) is int:
            items[index] = payload["item"]
        elif type(index) is int and index in items:
            _add_to_item(items[index], kind, payload)
    return {**whole, "output": [items[index] for index in sorted(items)]}


def _add_to_item(item: Json, kind: str, payload: Json) -> None:
    number, delta = payload.get("content_index"), payload.get("delta")
    parts = item.setdefault("content", []) if kind.startswith(("response.content_part", "response.output_text")) else []
    if kind in ("response.content_part.added", "response.content_part.done") and isinstance(parts, list):
        if number == len(parts):
            parts.append(payload.get("part"))
        elif type(number) is int and 0 <= number < len(parts):
            parts[number] = payload.get("part")
    elif kind == "response.output_text.delta" and isinstance(delta, str):
        if type(number) is int and 0 <= number < len(parts) and isinstance(parts[number], dict):
            _merge(parts[number], {"text": delta})
    elif kind == "response.function_call_arguments.delta" and isinstance(delta, str):
        _merge(item, {"arguments": delta})


def _message(payloads: list[Json]) -> Json:
    """Anthropic's message, from its blocks."""
    whole: Json = {}
    blocks: dict[int, Json] = {}
    arguments: dict[int, str] = {}
    for payload in payloads:
        kind, index, delta = payload.get("type"), payload.get("index"), payload.get("delta")
        if kind == "message_start" and isinstance(payload.get("message"), dict):
            whole = dict(payload["message"])
        elif kind == "content_block_start" and isinstance(payload.get("content_block"), dict) and type(index) is int:
            blocks[index] = dict(payload["content_block"])
        elif kind == "content_block_delta" and isinstance(delta, dict) and type(index) is int and index in blocks:
            if delta.get("type") == "input_json_delta":
                arguments[index] = arguments.get(index, "") + str(delta.get("partial_json", ""))
            else:
                _add_to_block(blocks[index], delta)
        elif kind == "message_delta":
            whole.update(delta if isinstance(delta, dict) else {})
            if isinstance(payload.get("usage"), dict):
                whole["usage"] = {**(whole.get("usage") or {}), **payload["usage"]}
    for index, text in arguments.items():
        blocks[index]["input"] = _arguments(text)
    return {**whole, "content": [blocks[index] for index in sorted(blocks)]}


def _add_to_block(block: Json, delta: Json) -> None:
    if "citation" in delta:
        block["citations"] = [*(block.get("citations") or []), delta["citation"]]
    else:
        _merge(block, {key: value for key, value in delta.items() if key != "type"})


def _arguments(text: str) -> Any:
    """The input of a tool; as text where it was cut short."""
    try:
        return orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return text


_DIALECTS: tuple[tuple[str, Callable[[list[Json]], Json]], ...] = (
    ("chat.completion", _chat),
    ("text_completion", _completion),
    ("response.", _response),
    ("message_start", _message),
)
