"""The rules by which a chat's tokens are counted where its provider does not state them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from llm_proxy.usage.encodings import Encoder
from llm_proxy.usage.images import image_tokens

PER_MESSAGE = 3
PER_NAME = 1
PER_REPLY = 3
PER_TOOLS = 9

# A text is encoded in pieces of this many characters, each in well under a millisecond whatever it holds.
PIECE = 2048
# What is longer is not counted: no model takes it, or the thread would be busy with one call for seconds.
LONGEST_TEXT = 4 * 1024 * 1024
# Choices, with the tool calls in each.
MOST_PARTS = 1024

# What a model says stands in these, whether in a piece of a reply or in the whole.
_SPOKEN = ("content", "refusal", "reasoning_content", "reasoning")

Part = tuple[object, ...]


class Uncountable(Exception):
    """A call is no chat that the rules know, or too large to be counted."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What there is to count of a request.

    Attributes:
        fixed: tokens that are known without a tokenizer.
        texts: what a tokenizer must be asked for.
    """

    fixed: int
    texts: tuple[str, ...]


def read_prompt(body: bytes) -> Prompt:
    """What there is to count of a chat's or a completion's request.

    Raises:
        Uncountable: it is neither, or is too large.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Uncountable from None
    if not isinstance(request, dict):
        raise Uncountable
    if isinstance(request.get("messages"), list):
        counted = [*_of_messages(request["messages"]), *_of_tools(request), PER_REPLY]
    elif "prompt" in request:
        counted = list(_of_prompt(request["prompt"]))
    else:
        raise Uncountable
    texts = tuple(each for each in counted if isinstance(each, str))
    if sum(map(len, texts)) > LONGEST_TEXT:
        raise Uncountable
    return Prompt(sum(each for each in counted if isinstance(each, int)), texts)


def _of_messages(messages: list[Any]) -> Iterator[str | int]:
    for message in messages:
        yield PER_MESSAGE
        if not isinstance(message, dict):
            continue
        if isinstance(message.get("name"), str):
            yield PER_NAME
        yield from (message[key] for key in ("role", "name") if isinstance(message.get(key), str))
        yield from _of_content(message.get("content"))
        yield from (text for _, text in _tool_calls(message))


def _of_content(content: object) -> Iterator[str | int]:
    """A message's content is a text, or a list of texts and pictures."""
    if isinstance(content, str):
        yield content
    for part in _objects(content):
        text = part.get("text")
        if isinstance(text, str):
            yield text
        elif part.get("type") == "image_url":
            image = part.get("image_url")
            image = image if isinstance(image, dict) else {"url": image}
            yield image_tokens(str(image.get("url")), str(image.get("detail")))


def _of_tools(request: dict[str, Any]) -> Iterator[str | int]:
    """The provider renders tools in a way of its own, to which their JSON comes near."""
    tools = request.get("tools") or request.get("functions")
    if tools:
        yield PER_TOOLS
        yield orjson.dumps(tools).decode()


def _of_prompt(prompt: object) -> Iterator[str | int]:
    """A completion's prompt is a text, the tokens themselves, or a list of either."""
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, list):
        yield from (each for each in prompt if isinstance(each, str))
        for tokens in (prompt, *(each for each in prompt if isinstance(each, list))):
            yield sum(type(token) is int for token in tokens)


def words_of(reply: object) -> Iterator[tuple[Part, str]]:
    """The texts in a reply, or in a piece of one, each with the part of the reply that it belongs to."""
    for choice in _choices(reply):
        index, text = str(choice.get("index")), choice.get("text")
        if isinstance(text, str):
            yield (index, "text"), text
        said = choice.get("delta") or choice.get("message")
        if isinstance(said, dict):
            yield from (((index, key), said[key]) for key in _SPOKEN if isinstance(said.get(key), str))
            yield from (((index, *part), words) for part, words in _tool_calls(said))


def _choices(reply: object) -> list[dict[str, Any]]:
    return _objects(reply.get("choices")) if isinstance(reply, dict) else []


def _tool_calls(message: dict[str, Any]) -> Iterator[tuple[Part, str]]:
    """The names and arguments with which a message calls tools."""
    for number, call in enumerate(_objects(message.get("tool_calls"))):
        yield from _function(str(call.get("index", number)), call.get("function"))
        yield from _function(str(call.get("index", number)), call.get("custom"))
    yield from _function("function_call", message.get("function_call"))


def _function(number: str, function: object) -> Iterator[tuple[Part, str]]:
    if isinstance(function, dict):
        keys = ("name", "arguments", "input")
        yield from (((number, key), function[key]) for key in keys if isinstance(function.get(key), str))


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def pieces_of(text: str) -> Iterator[str]:
    """The text in pieces that together have as many tokens as the whole, except where a long run has no space to cut at."""
    start = 0
    while len(text) - start > PIECE:
        end = _cut(text, start)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, start: int) -> int:
    """Where a piece may end: in front of a single space between words, for there every encoding begins anew."""
    at = start + PIECE
    while (at := text.rfind(" ", start + 1, at)) > 0:
        if not text[at - 1].isspace() and not text[at + 1].isspace():
            return at
    return start + PIECE


class Completion:
    """Counts what a reply says, as its pieces come.

    Attributes:
        begun: whether there was a choice in the reply; one without any is no chat's.
    """

    __slots__ = ("_count", "_length", "_open", "_tokens", "begun")

    def __init__(self, count: Encoder) -> None:
        self.begun = False
        self._count = count
        self._tokens = 0
        self._length = 0
        # Of each part the end, which what comes next may still change the tokens of.
        self._open: dict[Part, str] = {}

    def take(self, reply: object) -> None:
        """Takes a piece of a reply, or the whole, decoded from its JSON.

        Raises:
            Uncountable: the reply is too large.
        """
        self.begun = self.begun or bool(_choices(reply))
        for part, words in words_of(reply):
            self._length += len(words)
            *done, self._open[part] = pieces_of(self._open.get(part, "") + words)
            self._tokens += sum(map(self._count, done))
        if self._length > LONGEST_TEXT or len(self._open) > MOST_PARTS:
            raise Uncountable

    def total(self) -> int:
        """The tokens so far."""
        return self._tokens + sum(map(self._count, self._open.values()))

    @property
    def settled(self) -> int:
        """The tokens that nothing which may come will change."""
        return self._tokens

    @property
    def waiting(self) -> int:
        """How many characters `total` must look at."""
        return sum(map(len, self._open.values()))
