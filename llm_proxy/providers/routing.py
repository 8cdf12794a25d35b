"""Which of the providers that may serve a call gets it, by pure rules."""

import random
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol, TypeVar

from llm_proxy.providers.mapping import ModelMapping
from llm_proxy.providers.profiles import matches_any


class Candidate(Protocol):
    """What the choice knows of a provider that may get a call."""

    @property
    def id(self) -> str:
        """The provider's id."""

    @property
    def weight(self) -> int:
        """Its share among the candidates; 0 for a provider that is only asked when no other is left."""

    @property
    def mapping(self) -> ModelMapping:
        """The models that it serves."""


C = TypeVar("C", bound=Candidate)

# Objects live with one provider, in one account. Paths are looked up without the /openai and /v1 at their beginning.
_OBJECTS = (
    "/agents/**",
    "/assistants/**",
    "/batch/**",
    "/batches/**",
    "/chat/completions/**",
    "/containers/**",
    "/conversations/**",
    "/evals/**",
    "/files/**",
    "/fine_tuning/**",
    "/generation",
    "/messages/batches/**",
    "/responses/**",
    "/threads/**",
    "/uploads/**",
    "/vector_stores/**",
    "/videos/**",
)
_CHAT = "/chat/completions"
_RESPONSES = "/responses"
_MODELS = ("/models/**",)

# Fields by which a body names an object: a file in a message, a store to search, the answer that it goes on from. A text that
# talks of them has its quotes escaped, so it is not taken for one.
_NAMING = (b'"file_id"', b'"file_ids"', b'"vector_store_ids"', b'"previous_response_id"', b'"conversation"', b'"container"')
_NAMES_OBJECT = re.compile(
    rb'"(?:file_id|previous_response_id|container)"\s*:\s*"'
    rb'|"(?:file_ids|vector_store_ids)"\s*:\s*\[\s*"'
    rb'|"conversation"\s*:\s*["{]'
)


def serving(candidates: Iterable[C], model: str | None) -> list[tuple[C, str | None]]:
    """The candidates that serve a model, each with its own name for it; all of them when the call names none.

    Args:
        candidates: those whose profile admits the call.
        model: the client's name, PROVIDER_SUFFIX taken off.
    """
    if model is None:
        return [(candidate, None) for candidate in candidates]
    named = ((candidate, candidate.mapping.serves(model)) for candidate in candidates)
    return [(candidate, name) for candidate, name in named if name is not None]


def choose(
    candidates: Sequence[C],
    admits: Callable[[C], bool],
    tried: Collection[str] = (),
    random: Callable[[], float] = random.random,
) -> C | None:
    """The next candidate for a call: by weight, among those not tried yet whose breaker admits it; None when none is left.

    Asked again after a failure it goes on through all of them, so that a breaker that opened meanwhile is heeded.

    Args:
        admits: whether the candidate's breaker lets a call through now.
        tried: the ids of those that had their chance.
        random: from 0 to below 1.
    """
    left = [candidate for candidate in candidates if candidate.id not in tried and admits(candidate)]
    if len(left) < 2:
        return left[0] if left else None
    weighted = [candidate for candidate in left if candidate.weight]
    if not weighted:
        return left[int(random() * len(left))]
    point = random() * sum(candidate.weight for candidate in weighted)
    for candidate in weighted:
        point -= candidate.weight
        if point < 0:
            return candidate
    # Only what floats lose leads here.
    return weighted[-1]


def fixed(candidates: Iterable[C]) -> C | None:
    """The one candidate that has the objects, whatever its breaker says: the highest weight, then the lowest id."""
    return min(candidates, key=lambda candidate: (-candidate.weight, candidate.id), default=None)


def is_sticky(method: str, path: str, body: bytes = b"") -> bool:
    """Whether a call creates or names an object, so that only one provider can serve it, without failover.

    A chat is free unless it is to be stored (`"store": true`); an answer of the responses API is stored unless the call says
    otherwise. Where a body is at hand, it is looked at for objects that it names.

    Args:
        method: in capitals.
        path: canonical.
        body: JSON; empty for anything else and for what is not at hand.
    """
    place = path.removeprefix("/openai").removeprefix("/v1")
    if method == "POST" and place.endswith(_CHAT):
        return _stores(body, otherwise=False) or names_object(body)
    if method == "POST" and place == _RESPONSES:
        return _stores(body, otherwise=True) or names_object(body)
    if matches_any(_MODELS, place):
        # A fine-tuned model is an object of one account; all may be read from anywhere.
        return method not in ("GET", "HEAD")
    return matches_any(_OBJECTS, place) or names_object(body)


_STORE = re.compile(rb'"store"\s*:\s*(true|false|null)')


def _stores(body: bytes, *, otherwise: bool) -> bool:
    """What a body says of `store`; when it says both somewhere, what makes the call sticky, which is always right."""
    said = set(_STORE.findall(body)) if b'"store"' in body else set()
    return b"true" in said or (otherwise and b"false" not in said)


def names_object(body: bytes) -> bool:
    """Whether a JSON body names an object of the provider: a file, an earlier response, a vector store."""
    # A plain search first, as it goes through a body of megabytes in a moment.
    return any(field in body for field in _NAMING) and _NAMES_OBJECT.search(body) is not None
