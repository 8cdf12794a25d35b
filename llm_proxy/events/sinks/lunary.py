"""Events as runs at Lunary."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import orjson

from llm_proxy.clock import from_rfc3339, to_rfc3339
from llm_proxy.events.replies import json_of, reply_of
from llm_proxy.events.sinks.contract import DELIVERED, Document, Verdict
from llm_proxy.events.sinks.http import post
from llm_proxy.secret import Secret, redact

# A run is known by the id of its event, so that Lunary itself drops what is delivered twice.
_ALREADY_THERE = re.compile(r"already exists|duplicate", re.IGNORECASE)
_PASSING = re.compile(
    r"time[d ]*\s?-?out|connect|deadlock|unavailable|too many|temporar|terminat|rate.?limit|econn|try again|project not found",
    re.IGNORECASE,
)
_FACTS = (
    *("request_id", "correlation_id", "project_id", "project_name", "token_id", "token_name", "provider", "model_used"),
    *("method", "path", "status", "outcome", "code", "stream", "duration", "first_byte", "cache", "usage_source"),
)


class LunarySink:
    """Sends a start and an end record for each event, and reads what Lunary says of each."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: Secret) -> None:
        self._session, self._url, self._key = session, url, key

    async def deliver(self, events: Sequence[Document]) -> list[Verdict]:
        """One call for all of them; it may be answered 200 with failures inside."""
        verdict, answer = await post(self._session, self._url, self._key, lambda: ingestion_of(events))
        if verdict.kind != "delivered":
            return [verdict] * len(events)
        return read_results(answer, [str(event["id"]) for event in events])

    def reopen(self) -> None:
        """There is no file."""

    async def close(self) -> None:
        """Nothing is held; the session is its owner's."""


def ingestion_of(events: Sequence[Document]) -> dict[str, Any]:
    """The body of one call."""
    return {"events": [record for event in events for record in records_of(event)]}


def records_of(event: Document) -> list[dict[str, Any]]:
    """The start and the end of the run that an event is."""
    started = from_rfc3339("started_at", event["started_at"])
    ended = started + round(float(event.get("duration") or 0.0) * 1000)
    usage = event.get("usage") or {}
    run = {"type": "llm", "runId": event["id"], "name": event.get("model_used") or event.get("model") or "unknown"}
    facts = {name: event[name] for name in _FACTS if event.get(name) is not None}
    start = {**run, "event": "start", "timestamp": to_rfc3339(started), "input": _input(event), "metadata": facts}
    end = {**run, "event": "end", "timestamp": to_rfc3339(ended), "output": _output(event)}
    # Without a count Lunary estimates; a zero of ours it would believe.
    if usage.get("source", "none") != "none":
        end["tokensUsage"] = {"prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"]}
    return [start, end]


def _input(event: Document) -> Any:
    """The part of a request that people call its input."""
    body = json_of(event.get("request_body"))
    if not isinstance(body, dict):
        return body
    messages = body.get("messages")
    if isinstance(messages, list) and body.get("system"):
        # Anthropic keeps the system's words apart from the messages.
        return [{"role": "system", "content": body["system"]}, *messages]
    return messages or body.get("input") or body.get("prompt") or body


def _output(event: Document) -> Any:
    """The part of a reply that people call its output."""
    reply = reply_of(event)
    if not isinstance(reply, dict):
        return reply
    choices = reply.get("choices")
    if isinstance(choices, list) and choices:
        said = [choice.get("message", choice.get("text")) for choice in choices if isinstance(choice, dict)]
        return said[0] if len(said) == 1 else said
    if reply.get("type") == "message":
        return {"role": reply.get("role", "assistant"), "content": reply.get("content")}
    return reply.get("output") or reply


def read_results(answer: bytes, ids: Sequence[str]) -> list[Verdict]:
    """A verdict for each run, from the results of its two records, which Lunary gives in an order of its own."""
    try:
        results = orjson.loads(answer)["results"]
        failures = [result for result in results if not result["success"]]
        succeeded = {result.get("id") for result in results if result["success"]}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return [Verdict("failed", "Lunary answered 200 without results")] * len(ids)
    worst: dict[object, Verdict] = {}
    for failure in failures:
        verdict = _verdict(failure)
        if verdict is not DELIVERED:
            worst[failure.get("id")] = verdict
    unsaid = Verdict("failed", "Lunary's results lack this event")
    known = succeeded | {failure.get("id") for failure in failures}
    return [worst.get(id, DELIVERED if id in known else unsaid) for id in ids]


def _verdict(failure: Mapping[str, Any]) -> Verdict:
    reason = redact(str(failure.get("error") or "no reason given"))[:500]
    if _ALREADY_THERE.search(reason):
        return DELIVERED
    return Verdict("failed" if _PASSING.search(reason) else "refused", reason)
