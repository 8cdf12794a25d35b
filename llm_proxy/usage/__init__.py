"""Tokens that a provider says a call used, read from its reply or stream of events."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson

# Larger than any call can be; a figure above it is a fault of the provider's, and would spoil every sum it enters.
LARGEST_FIGURE = 10**9
LONGEST_MODEL = 256

# Where the dialects put each figure inside `usage`, then inside an object of it. Of two places that are both filled, the later
# one counts.
_PLACES = (
    ("prompt", "input_tokens"),
    ("prompt", "prompt_tokens"),
    ("completion", "output_tokens"),
    ("completion", "completion_tokens"),
    ("total", "total_tokens"),
    ("read", "cache_read_input_tokens"),
    ("written", "cache_creation_input_tokens"),
)
_OF_PROMPT = (("cached", "cached_tokens"), ("cache_write", "cache_write_tokens"))
_OF_COMPLETION = (("reasoning", "thinking_tokens"), ("reasoning", "reasoning_tokens"))
_DETAILS = (
    ("input_tokens_details", _OF_PROMPT),
    ("prompt_tokens_details", _OF_PROMPT),
    ("output_tokens_details", _OF_COMPLETION),
    ("completion_tokens_details", _OF_COMPLETION[1:]),
)

# Which objects of an event may hold `usage` and `model`, besides the event itself: OpenAI's responses, Anthropic's
# message_start, Groq's last chunk.
_HOLDERS = ("response", "message", "x_groq")

_ENDS = frozenset({b"message_stop", b"response.completed", b"response.incomplete", b"response.failed"})

# The end as it shows in the data, for providers that leave the event's name out.
_END = re.compile(rb'\[DONE\]|\{\s*"type"\s*:\s*"(?:message_stop|response\.(?:completed|incomplete|failed))"')

# `"usage": null` stands in every chunk of OpenAI's streams; only an object is worth parsing for. Inside a JSON string
# the quotes would be escaped, so this never matches text of the model's.
_USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*\{')


# Without slots: orjson writes what has a `__dict__` in a quarter of the time, and every event holds one. Not frozen, as a field
# of a frozen one costs a call.
@dataclass(unsafe_hash=True)
class Usage:
    """The tokens of one call; nobody changes it.

    Attributes:
        prompt_tokens: the whole prompt, what was read from or written to the provider's cache included.
        completion_tokens: the whole completion, reasoning included.
        total_tokens: the provider's own total, or the sum of both where it gives none.
        cached_tokens: the part of the prompt that was read from the provider's cache.
        cache_write_tokens: the part of the prompt that was written to the provider's cache.
        reasoning_tokens: the part of the completion that was reasoning.
        source: who counted: `provider`, `counted` (by us) or `none`.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: str = "none"


NO_USAGE = Usage()


def read_usage(reply: object) -> Usage | None:
    """The usage that a decoded JSON reply states, None when it states none that makes sense."""
    return _usage(_figures(reply.get("usage"))) if isinstance(reply, dict) else None


def read_model(reply: object) -> str | None:
    """The model that a decoded JSON reply says answered."""
    model = reply.get("model") if isinstance(reply, dict) else None
    return model if isinstance(model, str) and 0 < len(model) <= LONGEST_MODEL else None


def _figures(usage: object) -> dict[str, int]:
    """The figures of a `usage` object that make sense, by our own names for them."""
    if not isinstance(usage, dict):
        return {}
    figures: dict[str, int] = {}
    _take_figures(usage, _PLACES, figures)
    for key, places in _DETAILS:
        if key in usage and isinstance(details := usage[key], dict):
            _take_figures(details, places, figures)
    return figures


def _take_figures(said: Mapping[str, object], places: tuple[tuple[str, str], ...], figures: dict[str, int]) -> None:
    for name, key in places:
        if key in said:
            value = said[key]
            # A bool is an int to isinstance, hence the exact type.
            if type(value) is int and 0 <= value <= LARGEST_FIGURE:
                figures[name] = value


def _usage(figures: Mapping[str, int]) -> Usage | None:
    """The usage that the figures amount to, None when neither prompt, completion nor total is among them.

    Anthropic counts cached tokens beside `input_tokens`, everybody else within the prompt. Anthropic also is the one
    that states no total, which tells the two apart even where a gateway sends the cache counts of both dialects.
    """
    if "prompt" not in figures and "completion" not in figures and "total" not in figures:
        return None
    read, written = figures.get("read", 0), figures.get("written", 0)
    prompt, completion = figures.get("prompt", 0), figures.get("completion", 0)
    if "total" not in figures:
        prompt += read + written
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=figures.get("total", prompt + completion),
        cached_tokens=figures.get("cached", read),
        cache_write_tokens=figures.get("cache_write", written),
        reasoning_tokens=figures.get("reasoning", 0),
        source="provider",
    )


class StreamUsage:
    """Reads the usage from the events of a stream as they pass.

    Later figures replace earlier ones, each by itself: Anthropic gives the prompt in its first event and cumulative
    counts in later ones, and other providers that report more than once do so cumulatively too.

    Attributes:
        model: the model that the provider says answered, None until it says so.
        finished: whether the stream reached the end that its dialect has for a whole reply.
    """

    __slots__ = ("_figures", "finished", "model")

    def __init__(self) -> None:
        self.model: str | None = None
        self.finished = False
        self._figures: dict[str, int] = {}

    def feed(self, event: bytes, data: bytes) -> None:
        """Takes one event."""
        self.feed_all(((event, data),))

    def feed_all(self, events: Iterable[tuple[bytes, bytes]]) -> None:
        """Takes events, by name and data; one is parsed only when it can tell something new."""
        for event, data in events:
            if event in _ENDS or _END.match(data):
                self.finished = True
            if (self.model is None and b'"model"' in data) or (b'"usage"' in data and _USAGE_OBJECT.search(data)):
                self._read(data)

    def result(self) -> Usage | None:
        """The usage stated so far, None when there is none."""
        return _usage(self._figures)

    def _read(self, data: bytes) -> None:
        try:
            payload = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if not isinstance(payload, dict):
            return
        for holder in (payload, *map(payload.get, _HOLDERS)):
            if isinstance(holder, dict):
                self.model = self.model or read_model(holder)
                self._figures.update(_figures(holder.get("usage")))
