"""Events as requests at Helicone."""

import functools
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from llm_proxy.clock import from_rfc3339
from llm_proxy.events.replies import json_of, reply_of
from llm_proxy.events.sinks.contract import Document, Verdict
from llm_proxy.events.sinks.http import post
from llm_proxy.secret import Secret

# What Helicone asks for in place of an address that it does not know the prices of.
_CUSTOM = "custom-model-nopath"
_META = (
    *("request_id", "correlation_id", "project_id", "project_name", "token_id", "token_name", "provider", "provider_type"),
    *("path", "outcome", "code", "cache"),
)
# Helicone makes headers of them, and fails on a value that is none: everything else is written as in a URL.
_SAFE_IN_HEADERS = "".join(map(chr, range(0x20, 0x7F)))


class HeliconeSink:
    """Sends one call for each event, in order, on one connection that is kept."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: Secret) -> None:
        self._session, self._url, self._key = session, url, key

    async def deliver(self, events: Sequence[Document]) -> list[Verdict]:
        """One after the other; after a failure the rest is not tried."""
        verdicts: list[Verdict] = []
        for event in events:
            verdict, _ = await post(self._session, self._url, self._key, functools.partial(document_of, event))
            verdicts.append(verdict)
            if verdict.kind in ("failed", "away"):
                break
        untried = Verdict("away", f"not tried after: {verdicts[-1].reason}" if verdicts else "")
        return verdicts + [untried] * (len(events) - len(verdicts))

    def reopen(self) -> None:
        """There is no file."""

    async def close(self) -> None:
        """Nothing is held; the session is its owner's."""


def document_of(event: Document) -> dict[str, Any]:
    """The call as Helicone wants it told."""
    started = from_rfc3339("started_at", event["started_at"])
    ended = started + round(float(event.get("duration") or 0.0) * 1000)
    timing: dict[str, Any] = {"startTime": _moment(started), "endTime": _moment(ended)}
    if event.get("stream") and event.get("first_byte") is not None:
        timing["timeToFirstToken"] = round(float(event["first_byte"]) * 1000)
    meta = {f"Helicone-Property-{name}": _header(event[name]) for name in _META if event.get(name) is not None}
    return {
        "providerRequest": {"url": _CUSTOM, "json": _request(event), "meta": {"Helicone-Request-Id": event["id"], **meta}},
        "providerResponse": {
            # A call that never got an answer is told as one that the client closed, for 0 is no status.
            "status": event.get("status") or 499,
            "headers": {"x-request-id": _header(event.get("request_id") or "")},
            "json": _reply(event),
        },
        "timing": timing,
    }


def _header(value: object) -> str:
    return urllib.parse.quote(str(value), safe=_SAFE_IN_HEADERS)


def _moment(ms: int) -> dict[str, int]:
    return {"seconds": ms // 1000, "milliseconds": ms % 1000}


def _request(event: Document) -> dict[str, Any]:
    body = json_of(event.get("request_body"))
    if isinstance(body, dict):
        return {"model": event.get("model"), **body}
    return {"model": event.get("model"), **({} if body is None else {"body": body})}


def _reply(event: Document) -> dict[str, Any]:
    """The reply; where none was captured, what is known of it, so that tokens and costs still show."""
    reply, usage = reply_of(event), event.get("usage") or {}
    if isinstance(reply, dict):
        # What the provider stated is in it already; what was counted is not.
        return {**reply, **_figures(usage)} if usage.get("source") == "counted" else reply
    told: dict[str, Any] = {"model": event.get("model_used") or event.get("model")}
    if reply is not None:
        told["body"] = reply
    return {**told, **(_figures(usage) if usage.get("source", "none") != "none" else {})}


def _figures(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {"usage": {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}}
