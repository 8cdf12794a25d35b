"""A stand-in for OpenAI or Anthropic that answers by rule, with faults on demand."""

import asyncio
import base64
import hashlib
import itertools
import math
import re
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson
from aiohttp import web

from llm_proxy.errors import LLMProxyError

Json = dict[str, Any]
Body = bytes | Iterator[bytes]

NO_SUCH_MODEL = "no-such-model"
MODELS = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small", "claude-sonnet-4-5", "claude-haiku-4-5")
HARMS = ["harassment", "hate", "illicit", "self-harm", "sexual", "violence"]
HARMS += ["harassment/threatening", "hate/threatening", "illicit/violent", "self-harm/instructions", "self-harm/intent"]
HARMS += ["sexual/minors", "violence/graphic"]

# Equal requests get equal bytes, so the time in a reply is a constant.
CREATED, CREATED_AT = 1_767_225_600, "2026-01-01T00:00:00Z"

LARGEST_FAULT = 10**6
ECHO_LIMIT = 200
FILLER = (" and", " so", " on")
DIMENSIONS = 1536
BODY_PIECE = 64
LARGEST_BODY = 64 * 2**20
LONGEST_LINE = 64 * 2**10

# An error's type, with its code in OpenAI's dialect; other statuses fall to the class of the status.
OPENAI_ERRORS = {401: ("invalid_request_error", "invalid_api_key"), 429: ("requests", "rate_limit_exceeded")}
ANTHROPIC_ERRORS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
ANTHROPIC_ERRORS |= {429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error"}


@dataclass(frozen=True)
class Faults:
    """What goes wrong; a request overrides a field by the header `X-Fake-` with the field's name, such as `X-Fake-Bad-JSON: 1`.

    Attributes:
        delay: seconds of silence before the head.
        status: answer with this status and an error body.
        cut: close the connection after so many chunks, never with a clean end; 0 closes it before the head.
        drip: seconds between the chunks of a stream.
        bad_json: cut the JSON of the body, or of each event, in half.
        stall: send so many chunks, then nothing until the client leaves; 0 sends the head alone.
        words: the length of the answer, 0 for as long as it comes.
        gzip: compress the reply when the client accepts gzip.
        retry_after: the `Retry-After` of errors.
    """

    delay: float = 0
    status: int = 0
    cut: int | None = None
    drip: float = 0
    bad_json: bool = False
    stall: int | None = None
    words: int = 0
    gzip: bool = False
    retry_after: str = ""


NO_FAULTS = Faults()

FAULT_KINDS: Mapping[str, type] = {"delay": float, "drip": float, "retry_after": str}


class Refused(LLMProxyError):
    """The fake provider's own error, which a proxy passes on untouched."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def read_faults(headers: Mapping[str, str], defaults: Faults) -> Faults:
    """The faults of one request: its `X-Fake-*` headers over the defaults."""
    changes: Json = {}
    for name, text in headers.items():
        if name[:7].lower() == "x-fake-":
            changes.update([_fault(name[7:].lower().replace("-", "_"), text)])
    return replace(defaults, **changes) if changes else defaults


def _fault(key: str, text: str) -> tuple[str, Any]:
    try:
        value = FAULT_KINDS.get(key, int)(text)
    except ValueError:
        value = -1
    if key not in Faults.__dataclass_fields__ or not (isinstance(value, str) or 0 <= value <= LARGEST_FAULT):
        raise Refused(400, f"The fake provider has no fault {key}, or not with such a value.")
    return key, value


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks, with the words of the answer, each of them behind its white space."""

    body: Json
    model: str
    id: str = ""
    words: list[str] = field(default_factory=list)
    input_tokens: int = 0

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.words)


def text_of(value: object) -> str:
    """The text in a message, a part, or any nesting of them."""
    if isinstance(value, list):
        return " ".join(filter(None, map(text_of, value)))
    if isinstance(value, dict):
        return text_of(value.get("text", value.get("content")))
    return value if isinstance(value, str) else ""


def last_user_text(source: object) -> str:
    """The last thing the user said, or everything when nobody is named as the speaker."""
    messages = source if isinstance(source, list) else []
    said = [item for item in messages if isinstance(item, dict) and item.get("role") == "user"]
    return text_of(said[-1] if said else source)


def answer_words(prompt: str, wanted: int) -> list[str]:
    """A friendly echo of the prompt: of its natural length up to a limit, or of as many words as wanted."""
    sentence = f"Hello! You said: {prompt.strip() or 'nothing that I can read.'}"
    words = [match[0] for match in itertools.islice(re.finditer(r"\s*\S+", sentence), wanted or ECHO_LIMIT)]
    return words + list(itertools.islice(itertools.cycle(FILLER), max(0, wanted - len(words))))


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

_PATH = re.compile(r".*?(?:/openai/deployments/([^/]+)|(?:/openai)?/v1|/openai)/(.+)")


def find_route(path: str) -> tuple[str, str]:
    """What follows `/v1` or Azure's prefix, with the model where the path names one."""
    match = _PATH.fullmatch(path)
    model, name = (match[1] or "", match[2]) if match else ("", "")
    return ("models/*", name[7:]) if name.startswith("models/") else (name, model)


def read_call(raw: bytes, model: str, needs_model: bool, words: int) -> Call:
    """The question in a body; a body that holds none is refused."""
    try:
        body = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError:
        raise Refused(400, "The body of the request is not valid JSON.") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body of the request must be a JSON object.")
    model = model or body.get("model") or ""
    if not isinstance(model, str) or (needs_model and not model):
        raise Refused(400, "The request must name a model.")
    if model == NO_SUCH_MODEL:
        raise Refused(404, f"The model {model} does not exist.", "model_not_found")
    source = body.get("messages", body.get("prompt", body.get("input")))
    asked = text_of([body.get("system"), body.get("instructions"), source]).split()
    return Call(body, model, f"fake-{zlib.crc32(raw):08x}", answer_words(last_user_text(source), words), len(asked))


def frames(events: Iterable[Json], named: bool) -> Iterator[bytes]:
    """Events as they go over the wire: named by their type, or closed by OpenAI's `[DONE]`."""
    for event in events:
        data = b"data: %b\n\n" % orjson.dumps(event)
        yield b"event: %b\n%b" % (event["type"].encode(), data) if named else data
    if not named:
        yield b"data: [DONE]\n\n"


def error_body(refused: Refused, anthropic: bool, request_id: str) -> bytes:
    """A provider's error in its dialect."""
    status = refused.status
    fallback = "invalid_request_error" if status < 500 else "api_error" if anthropic else "server_error"
    if anthropic:
        error: Json = {"type": ANTHROPIC_ERRORS.get(status, fallback), "message": str(refused)}
        return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
    kind, code = OPENAI_ERRORS.get(status, (fallback, refused.code))
    return orjson.dumps({"error": {"message": str(refused), "type": kind, "param": None, "code": code}})


def compressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks under gzip, each readable as soon as it has come."""
    compressor = zlib.compressobj(wbits=31)
    for chunk in chunks:
        yield compressor.compress(chunk) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()


class _Provider:
    def __init__(self, key: str | None, faults: Faults) -> None:
        self._key = key
        self._faults = faults
        self._calls = itertools.count(1)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        name, model = find_route(request.path)
        anthropic = name.startswith("messages")
        request_id = f"req_fake_{next(self._calls):06}"
        status, faults, headers = 200, self._faults, {"request-id" if anthropic else "x-request-id": request_id}
        try:
            faults = read_faults(request.headers, faults)
            body = await self._answer(request, name, model, faults)
        except Refused as refused:
            status, body = refused.status, error_body(refused, anthropic, request_id)
            if faults.retry_after:
                headers["Retry-After"] = faults.retry_after
        headers["Content-Type"] = "application/json" if isinstance(body, bytes) else "text/event-stream; charset=utf-8"
        if faults.delay:
            await asyncio.sleep(faults.delay)
        body = _disturbed(body, faults, request.headers, headers)
        if isinstance(body, bytes) and faults.cut is None and faults.stall is None:
            return web.Response(status=status, headers=headers, body=body)
        return await _send(request, web.StreamResponse(status=status, headers=headers), body, faults)

    async def _answer(self, request: web.Request, name: str, model: str, faults: Faults) -> Body:
        endpoint = ENDPOINTS.get(f"{request.method} {name}")
        raw = await (request.read() if endpoint else _describe(request))
        if self._key is not None and not _carries(request.headers, self._key):
            raise Refused(401, "The API key of this request is missing or wrong.")
        if faults.status:
            raise Refused(faults.status, f"The fake provider was asked to fail with status {faults.status}.")
        if endpoint is None:
            return raw
        call = read_call(raw, model, endpoint.needs_model, faults.words)
        if endpoint.events and call.body.get("stream") is True:
            return frames(endpoint.events(call), endpoint.named)
        return orjson.dumps(endpoint.reply(call))


def _carries(headers: Mapping[str, str], key: str) -> bool:
    # All that are sent must be right, so that a proxy which leaks its client's token beside the key is found out.
    sent = [headers[name] for name in ("x-api-key", "api-key") if name in headers]
    sent += [headers["Authorization"].removeprefix("Bearer ")] if "Authorization" in headers else []
    return set(sent) == {key}


async def _describe(request: web.Request) -> bytes:
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
    place = {"method": request.method, "path": request.rel_url.raw_path, "query": request.rel_url.raw_query_string}
    return orjson.dumps({**place, "content_type": request.headers.get("Content-Type", ""), "bytes": size})


def _disturbed(body: Body, faults: Faults, asked: Mapping[str, str], headers: dict[str, str]) -> Body:
    if faults.bad_json:
        body = body[: len(body) // 2] if isinstance(body, bytes) else (frame[: len(frame) // 2] + b"\n\n" for frame in body)
    if faults.gzip and "gzip" in asked.get("Accept-Encoding", ""):
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        body = b"".join(compressed([body])) if isinstance(body, bytes) else compressed(body)
    return body


async def _send(request: web.Request, response: web.StreamResponse, body: Body, faults: Faults) -> web.StreamResponse:
    limit = min((n for n in (faults.cut, faults.stall) if n is not None), default=None)
    if faults.cut != 0:
        if isinstance(body, bytes):
            # The last piece stays here, or a body of known length would be whole before the cut.
            response.content_length = len(body)
            body = iter([body[at : at + BODY_PIECE] for at in range(0, len(body) - BODY_PIECE, BODY_PIECE)])
        await response.prepare(request)
        for number, chunk in enumerate(itertools.islice(body, limit)):
            if number and faults.drip:
                await asyncio.sleep(faults.drip)
            await response.write(chunk)
    if limit is not None and limit != faults.cut:
        await asyncio.Event().wait()
    if limit is not None and request.transport is not None:
        # Closing sends what was written before the end comes without its terminator; aborting might lose it.
        request.transport.close()
    return response


def create_app(*, require_key: str | None = None, faults: Faults = NO_FAULTS) -> web.Application:
    """The fake provider as an application.

    Args:
        require_key: the only credential that is accepted; None accepts every request.
        faults: what goes wrong with each request that does not ask for something else.
    """
    app = web.Application(client_max_size=LARGEST_BODY)
    app.router.add_route("*", "/{path:.*}", _Provider(require_key, faults).handle)
    return app


@asynccontextmanager
async def running(host: str = "127.0.0.1", port: int = 0, **options: Any) -> AsyncIterator[str]:
    """Serve `create_app(**options)` at the address that it yields; calls that run at the end are cut a moment later."""
    runner = web.AppRunner(
        create_app(**options),
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        shutdown_timeout=0.05,
        max_line_size=LONGEST_LINE,
        max_field_size=LONGEST_LINE,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        address, bound = runner.addresses[0][:2]
        yield f"http://[{address}]:{bound}" if ":" in address else f"http://{address}:{bound}"
    finally:
        await runner.cleanup()
