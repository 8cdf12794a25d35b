"""The record of one call."""

from dataclasses import dataclass, field
from typing import TypedDict

from llm_proxy.clock import now_ms
from llm_proxy.ids import new_id
from llm_proxy.usage import NO_USAGE, Usage

OUTCOMES = (
    "completed",
    "cached",
    "refused",
    "client_gone",
    "upstream_failed",
    "upstream_incomplete",
    "aborted_by_shutdown",
    "internal_error",
)
# What an event says of the cache when the client was answered from it.
HITS = ("hit", "conditional-hit")


class FailedAttempt(TypedDict):
    """A provider that was asked, and did not serve the call.

    Attributes:
        status: of its answer, None when there was none.
        code: of the error in that case.
        duration: in seconds.
    """

    provider: str
    status: int | None
    code: str | None
    duration: float


@dataclass
class Event:
    """One call, filled in as it goes along, published once when it ends; times are milliseconds, durations seconds.

    Attributes:
        outcome: one of `OUTCOMES`.
        code: the error's code when we answered with one.
        status: the status the client was sent, 0 when it got none.
        provider: id of the provider that was called.
        provider_type: its profile.
        duration: from the head of the request to the end of the reply.
        overhead: the part of `duration` in which nothing was waited for, neither provider nor client.
        connect: until the request was handed to the provider's connection.
        first_byte: from then until the first byte of the answer.
        ttft: of a stream, from the head of the request to its first bytes.
        attempts: how many providers were tried.
        failed_attempts: what became of those before the last one.
        cache: what the cache had to do with it, in the words of `X-PROXY-CACHE`; None when it was not asked.
        request_body: its beginning, without credentials, where OBSERVABILITY_CAPTURE asks for it.
        reply_body: likewise.
    """

    request_id: str
    correlation_id: str | None
    client_ip: str | None
    user_agent: str | None
    method: str
    path: str
    id: str = field(default_factory=new_id)
    started_at: int = field(default_factory=now_ms)
    upstream_request_id: str | None = None
    project_id: str | None = None
    project_name: str | None = None
    token_id: str | None = None
    token_name: str | None = None
    model: str | None = None
    model_used: str | None = None
    provider: str | None = None
    provider_type: str | None = None
    endpoint: str | None = None
    status: int = 0
    outcome: str = "internal_error"
    code: str | None = None
    stream: bool = False
    duration: float = 0.0
    overhead: float = 0.0
    connect: float | None = None
    first_byte: float | None = None
    ttft: float | None = None
    request_bytes: int = 0
    reply_bytes: int = 0
    attempts: int = 0
    failed_attempts: list[FailedAttempt] = field(default_factory=list)
    cache: str | None = None
    usage: Usage = NO_USAGE
    request_body: str | None = None
    reply_body: str | None = None
