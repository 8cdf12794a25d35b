"""What a provider gets for a call."""

import dataclasses
from collections.abc import Callable

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
    if settings.request_timeout_secs:
        timeouts = dataclasses.replace(timeouts, first_byte=settings.request_timeout_secs, idle=settings.request_timeout_secs)
    if settings.ttft_timeout_secs and call.wants_stream:
        timeouts = dataclasses.replace(timeouts, first_byte=min(timeouts.first_byte, settings.ttft_timeout_secs))
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


def request_to(call: Call, route: Route, turn: Turn, timeouts: Timeouts, on_sent: Callable[[], None]) -> Request:
    """What the provider gets for a call."""
    path, profile, held = call.target.path, route.profile, call.body.held
    if renames(call, route):
        path, held = policy.with_model(path, route.model or ""), _renamed(call, route.model or "")
    key = route.provider.api_key
    assert key is not None
    sent = headers.to_provider(
        turn.request_headers(call.request.raw_headers),
        auth=profile.at(path).auth,
        key=key.reveal(),
        defaults=profile.default_headers,
        request_id=call.request_id,
        correlation_id=call.correlation_id,
        uncoded=renames(call, route),
    )
    query = urls.with_defaults(call.target.query, route.query_defaults(path))
    return Request(
        method=call.request.method,
        url=urls.join(route.base_url, path) + query,
        headers=sent,
        body=call.body.content(held),
        length=None if call.body.length is None else call.body.length + len(held) - len(call.body.held),
        profile=profile,
        timeouts=timeouts,
        trusted=route.base_url == profile.base_url,
        on_sent=on_sent,
    )
