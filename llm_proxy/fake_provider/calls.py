"""What a request asks of the fake provider."""

import itertools
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

import orjson

from llm_proxy.fake_provider.refusals import Refused

Json = dict[str, Any]

NO_SUCH_MODEL = "no-such-model"
ECHO_LIMIT = 200
FILLER = (" and", " so", " on")

_PATH = re.compile(r".*?(?:/openai/deployments/([^/]+)|(?:/openai)?/v1|/openai)/(.+)")


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
