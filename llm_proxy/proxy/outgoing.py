"""What a provider gets for a call."""

import dataclasses
import functools
from collections.abc import Callable

from llm_proxy.heads import Head
from llm_proxy.providers import policy
from llm_proxy.providers.profiles import Profile, Timeouts
from llm_proxy.proxy import headers, urls
from llm_proxy.proxy.body import is_read_whole
from llm_proxy.proxy.caching import Turn
from llm_proxy.proxy.call import Call, Route
from llm_proxy.proxy.renaming import rename_form, rename_request
from llm_proxy.upstream import Request


def timeouts_of(call: Call, profile: Profile) -> Timeouts:
    """The profile's timeouts, or what the settings put in their place."""
    timeouts, settings = profile.timeouts, call.context.settings
    seconds, first_seconds = settings.request_timeout_secs, settings.ttft_timeout_secs if call.wants_stream else 0
    return _bounded(timeouts, seconds, first_seconds) if seconds or first_seconds else timeouts


# Profiles and settings are few.
@functools.lru_cache(maxsize=256)
def _bounded(timeouts: Timeouts, seconds: float, first_seconds: float) -> Timeouts:
    if seconds:
        timeouts = dataclasses.replace(timeouts, first_byte=seconds, idle=seconds)
    if first_seconds:
        timeouts = dataclasses.replace(timeouts, first_byte=min(timeouts.first_byte, first_seconds))
    return timeouts


def renames(call: Call, route: Route) -> bool:
    """Whether the provider has another name for the model than the client used."""
    return route.model is not None and route.model != call.model


def _renamed(call: Call, name: str) -> bytes:
    """What was read of the body, with the provider's name for the model."""
    body, content_type = call.body, call.request.headers.get("Content-Type", "").lower()
    if body.scanner:
        start, end = body.scanner.place
        return body.held[:start] + name.encode() + body.held[end:] if end else body.held
    if not is_read_whole(content_type) or not body.held:
        return body.held
    return rename_form(body.held, name) if "urlencoded" in content_type else rename_request(body.held, name)


def _kept(head: Head) -> list[tuple[bytes, bytes]]:
    return headers.kept_for_provider(head.raw_headers)


def request_to(call: Call, route: Route, turn: Turn, timeouts: Timeouts, on_sent: Callable[[], None]) -> Request:
    """What the provider gets for a call."""
    path, profile, body, held = call.target.path, route.profile, call.body, call.body.held
    renamed = renames(call, route)
    if renamed:
        path, held = policy.with_model(path, route.model or ""), _renamed(call, route.model or "")
    key = route.provider.api_key
    assert key is not None
    head = call.request.head
    asked = turn.request_headers(head.raw_headers)
    sent = headers.to_provider(
        head.recall(_kept) if asked is head.raw_headers and not renamed else headers.kept_for_provider(asked, uncoded=renamed),
        auth=profile.at(path).auth,
        key=key.reveal(),
        defaults=profile.default_headers,
        request_id=call.request_id,
        correlation_id=call.correlation_id,
        uncoded=renamed,
    )
    query = urls.with_defaults(call.target.query, route.query_defaults(path) if profile.default_query else {})
    base_url = route.base_url
    return Request(
        method=call.request.method,
        url=urls.join(base_url, path) + query,
        headers=sent,
        body=body.content(call.end, held),
        length=None if body.length is None else body.length + len(held) - len(body.held),
        profile=profile,
        timeouts=timeouts,
        trusted=base_url == profile.base_url,
        on_sent=on_sent,
    )
