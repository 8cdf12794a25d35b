"""Chats in the dialects of providers: what is asked, what streams back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from llm_proxy.sse import EventSplitter
from llm_proxy.usage import StreamUsage

Json = Mapping[str, Any]
Messages = Sequence[Mapping[str, str]]

# Anthropic wants to be told; its smallest models write no more.
ANTHROPIC_MOST_TOKENS = 4096


class Problem(NamedTuple):
    """Why there is no answer; `code` is empty where none was said."""

    code: str
    message: str


class Dialect(NamedTuple):
    """How a chat is asked for and answered.

    Attributes:
        path: where a model is asked.
        headers: those that carry a token.
        body: what asks for a stream: of a model, with a system text or an empty one, and the messages so far.
        text: the text in one event of the stream, which may be none.
    """

    id: str
    title: str
    path: Callable[[str], str]
    headers: Callable[[str], Mapping[str, str]]
    body: Callable[[str, str, Messages], Json]
    text: Callable[[Json], str]


def _bearer(token: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _openai_body(model: str, system: str, messages: Messages) -> Json:
    first = [{"role": "system", "content": system}] if system else []
    return {"model": model, "messages": [*first, *messages], "stream": True, "stream_options": {"include_usage": True}}


def _openai_text(event: Json) -> str:
    # What Azure's filter notes in between has choices without a delta, or with one of null.
    return "".join(str((choice.get("delta") or {}).get("content") or "") for choice in event["choices"])


def _anthropic_body(model: str, system: str, messages: Messages) -> Json:
    first = {"system": system} if system else {}
    return {"model": model, "max_tokens": ANTHROPIC_MOST_TOKENS, **first, "messages": [*messages], "stream": True}


def _anthropic_text(event: Json) -> str:
    is_text = event["type"] == "content_block_delta" and event["delta"]["type"] == "text_delta"
    return str(event["delta"]["text"]) if is_text else ""


OPENAI = Dialect("openai", "OpenAI chat completions", lambda model: "/v1/chat/completions", _bearer, _openai_body, _openai_text)
# Its events are OpenAI's; the deployment stands in the path.
AZURE = OPENAI._replace(
    id="azure",
    title="Azure deployments",
    path=lambda model: f"/openai/deployments/{quote(model, safe='')}/chat/completions",
    headers=lambda token: {"api-key": token},
)
ANTHROPIC = Dialect(
    "anthropic",
    "Anthropic messages",
    lambda model: "/v1/messages",
    lambda token: {"x-api-key": token, "anthropic-version": "2023-06-01"},
    _anthropic_body,
    _anthropic_text,
)
DIALECTS: Mapping[str, Dialect] = {dialect.id: dialect for dialect in (OPENAI, ANTHROPIC, AZURE)}


def problem_in(document: object) -> Problem | None:
    """What a decoded body or event says went wrong, None when it is no error."""
    error = document.get("error") if isinstance(document, Mapping) else None
    if isinstance(error, str) and error:
        return Problem("", error)
    if not isinstance(error, Mapping) or not isinstance(error.get("message"), str):
        return None
    code = error.get("code") or error.get("type")
    return Problem(code if isinstance(code, str) else "", error["message"])


def problem_of(body: bytes) -> Problem | None:
    """What the body of an answer says went wrong, None when it is no error."""
    try:
        return problem_in(orjson.loads(body))
    except orjson.JSONDecodeError:
        return None


class Answer:
    """What has come of a streamed answer.

    Attributes:
        problem: what went wrong within the stream; nothing is read after it.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._splitter = EventSplitter()
        self.usage = StreamUsage()
        self.problem: Problem | None = None

    def feed(self, chunk: bytes) -> str:
        """Takes bytes of the stream; gives the text that they complete."""
        return "".join(self._read(name, data) for name, data in self._splitter.feed(chunk))

    def _read(self, name: bytes, data: bytes) -> str:
        if self.problem:
            return ""
        self.usage.feed(name, data)
        if data == b"[DONE]":
            return ""
        try:
            event = orjson.loads(data)
            self.problem = problem_in(event)
            return "" if self.problem else self._dialect.text(event)
        except (ValueError, LookupError, TypeError, AttributeError):
            self.problem = Problem("", "this is no stream of a chat.")
            return ""
