"""One call: what is known of it, from its head to its event."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aiohttp import hdrs

from llm_proxy.context import Context
from llm_proxy.deadlines import Deadline
from llm_proxy.errors import ApiError, UpstreamError
from llm_proxy.events import Event
from llm_proxy.grammar import Target, path_of
from llm_proxy.heads import Head
from llm_proxy.ids import new_id, valid_request_id
from llm_proxy.inbound import Inbound
from llm_proxy.limits.rates import Decision, Standing
from llm_proxy.peers import Peer
from llm_proxy.providers import Provider
from llm_proxy.providers.mapping import ModelMapping
from llm_proxy.providers.profiles import Profile
from llm_proxy.proxy.body import Body
from llm_proxy.proxy.capture import captures, reply_text, request_text
from llm_proxy.proxy.headers import replaced
from llm_proxy.proxy.reply import Reply
from llm_proxy.proxy.tee import Tee
from llm_proxy.secret import redact
from llm_proxy.tokens import Token
from llm_proxy.usage import Usage
from llm_proxy.usage.counter import Counter

_MOST_KEPT = 400


def shown(text: str | None) -> str | None:
    """Text of others as an event may hold it: bounded, without credentials, writable as UTF-8; None when it is empty."""
    if not text:
        return None
    # Credentials go first: one that the cut went through would not be known as one.
    kept = redact(text[: 2 * _MOST_KEPT])[:_MOST_KEPT]
    return kept if kept.isascii() else kept.encode("utf-8", "replace").decode()


class _Told(NamedTuple):
    """What a head tells of its call; not yet fit for an event, for what is a secret may become known after it came first.

    Attributes:
        target: its path, before anything of it was checked.
        asked_id: the request id that the client chose.
    """

    target: Target
    asked_id: str | None
    correlation_id: str | None
    user_agent: str | None


def _told(head: Head) -> _Told:
    return _Told(
        Target(path_of(head.raw_path), None),
        valid_request_id(head.headers.get("X-Request-ID")),
        valid_request_id(head.headers.get("X-Correlation-ID")),
        head.headers.get(hdrs.USER_AGENT),
    )


class Route(NamedTuple):
    """Where a call may go: a provider, with the profile of its type.

    Attributes:
        model: the provider's name for the model, None when the call names none.
    """

    provider: Provider
    profile: Profile
    model: str | None = None

    @property
    def id(self) -> str:
        """The provider's id."""
        return self.provider.id

    @property
    def weight(self) -> int:
        """The provider's share among those that may serve a call."""
        return self.provider.weight

    @property
    def mapping(self) -> ModelMapping:
        """The models that the provider serves."""
        return self.provider.mapping

    @property
    def base_url(self) -> str:
        """The provider's own base URL, or its profile's."""
        return self.provider.api_base or self.profile.base_url

    def query_defaults(self, path: str) -> Mapping[str, str]:
        """The query parameters that a call of this path gets when it lacks them; the provider's own word goes first."""
        defaults, params = self.profile.at(path).query_defaults, self.provider.provider_params
        return {name: str(params.get(name.replace("-", "_"), value)) for name, value in defaults.items()}


class _Waiting:
    """A `with` block whose time is none of ours."""

    __slots__ = ("_began", "_call")

    def __init__(self, call: "Call") -> None:
        self._call = call

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._call.waited += time.perf_counter() - self._began


class Call:
    """One call between its head and its event."""

    token: Token
    recognised = False
    model: str | None = None
    wants_stream = False
    wants_usage = False
    reached_provider = False
    published = False
    sent_ns = 0
    sent_at = 0.0
    waited = 0.0
    tee: Tee | None = None
    replayed: Tee | None = None
    counter: Counter | None = None
    end_error: ApiError | None = None
    deadline: Deadline | None = None
    _took_request = False
    _asked_limits = False
    _took_limits: Decision | None = None
    _standing: Standing | None = None

    def __init__(self, context: Context, request: Inbound, peer: Peer) -> None:
        self._began = time.perf_counter()
        self.context = context
        self.request = request
        told = request.head.recall(_told)
        self.target = told.target
        self.peer = peer
        self.reply = Reply(request)
        self.body = Body()
        self.timings: dict[str, float] = {}
        self.request_id = told.asked_id or new_id()
        self.correlation_id = told.correlation_id
        self.event = Event(
            request_id=shown(told.asked_id) or self.request_id,
            correlation_id=shown(told.correlation_id),
            client_ip=peer.address,
            user_agent=shown(told.user_agent),
            method=shown(request.method) or "",
            path=shown(told.target.path) or "",
        )

    @property
    def token_id(self) -> str:
        """The id of the call's token."""
        return self.token.id

    @property
    def token_kind(self) -> str:
        """`token`, or `master_key`, which has pages of its own."""
        return self.token.kind

    @property
    def project_id(self) -> str:
        """The id of the token's project."""
        return self.token.project_id

    @property
    def streams(self) -> bool:
        """Whether its answer is a stream of events."""
        return self.tee.is_event_stream if self.tee else self.wants_stream

    @property
    def sent_bytes(self) -> int:
        """How much of the answer's body went to the client."""
        return self.reply.sent_bytes

    def recognise(self, token: Token) -> None:
        """The call has shown a good token."""
        self.token = token
        self.recognised = True
        event = self.event
        event.token_id, event.token_name = token.id, token.name
        event.project_id, event.project_name = token.project_id, token.project_name
        self.context.running.add(self)

    async def take_limits(self) -> None:
        """Take one request from all rates, and the parallel slots, or nothing.

        Raises:
            ApiError: `rate_limit_exceeded`, `rate_limits_unavailable`.
        """
        self._asked_limits = True
        if limits := self.context.limits.of(self.token):
            self._took_limits = decision = await self.context.limiter.take(limits)
            self._standing = decision.standing
            if not decision.granted:
                raise decision.refusal()

    async def take_request(self) -> None:
        """Take one request from the token's quota; from now on, what was taken from the rates stays taken."""
        await self.context.quota.take(self.token)
        self._took_request = True

    def give_back_limits(self) -> None:
        """Make the call not to have happened to the rates, unless its quota let it through; its slots are free."""
        decision = self._took_limits
        if decision and decision.receipt and not self._took_request:
            self.context.limiter.give_back(decision)
            self._standing = self._standing and self._standing.without_one()

    async def look_at_limits(self) -> None:
        """Know how far the rates are used up, for an answer to a limited token that was refused before they were asked."""
        if self.recognised and not self._asked_limits:
            self._standing = await self.context.limiter.look(self.context.limits.of(self.token))

    def begin_reply(self, status: int, reason: str, headers: Iterable[tuple[bytes, bytes]], length: int | None) -> None:
        """Settle the head of the reply, with the token's rates in place of the provider's.

        A process that stops takes no further request on its connection.
        """
        if self.context.stopping:
            self.reply.keep_alive = False
        if self._standing:
            headers = replaced(headers, self._standing.headers())
        self.reply.begin(status, reason, headers, length)

    def end(self, error: ApiError) -> None:
        """End the call now: its permission is gone, or the process stops."""
        self.end_error = self.end_error or error
        if self.deadline and not self.deadline.expired():
            self.deadline.reschedule(asyncio.get_running_loop().time())
        elif self.request.content.exception() is None and not self.request.content.is_eof():
            # Its body is being read, which may take its client minutes.
            self.request.content.set_exception(error)

    def check_ended(self) -> None:
        """Raise what `end` was called with, if it was."""
        if self.end_error:
            raise self.end_error

    def elapsed(self) -> float:
        """Seconds since the head of the request."""
        return time.perf_counter() - self._began

    def waiting(self) -> "_Waiting":
        """Time that client or provider takes, and not we: that of a `with` block."""
        return _Waiting(self)

    def timed(self, name: str, since: float) -> None:
        """A part of the call that Server-Timing shows, from `since`, as `time.perf_counter` gave it, until now."""
        self.took(name, time.perf_counter() - since)

    def took(self, name: str, seconds: float) -> None:
        """A part of the call that Server-Timing shows; those of one name are shown together."""
        self.timings[name] = self.timings.get(name, 0.0) + seconds

    def server_timing(self) -> bytes:
        """The Server-Timing header's value, in milliseconds."""
        return ", ".join([f"{name};dur={seconds * 1000:.2f}" for name, seconds in self.timings.items()]).encode()

    def sent(self) -> None:
        """The request is handed to the provider's connection, so it counts from now on."""
        self.reached_provider = True
        self.sent_ns, self.sent_at = time.time_ns(), time.perf_counter()

    def outcome_of(self, error: ApiError) -> str:
        """What became of a call that ended with this error."""
        if isinstance(error, UpstreamError):
            return "upstream_incomplete" if self.reply.started else "upstream_failed"
        return {"internal_error": "internal_error", "shutting_down": "aborted_by_shutdown"}.get(error.code, "refused")

    def publish(self, outcome: str, error: ApiError | None = None, *, last: bytes = b"") -> None:
        """Publish the call's event; only the first time counts.

        Args:
            outcome: one of `events.OUTCOMES`.
            error: what we answered, or ended the reply with.
            last: the end of the reply, which is handed over next.
        """
        if self.published:
            return
        self.published = True
        event = self.event
        event.outcome, event.status = outcome, self.reply.status
        event.code = error.code if error else None
        event.duration = self.elapsed()
        event.overhead = max(0.0, event.duration - self.waited)
        if self.tee:
            event.usage, event.stream = self._usage(self.tee), self.tee.is_event_stream
            # Where a mapping renamed it, the reply that passed says the client's name.
            event.model_used = event.model_used or shown(self.tee.model)
        event.request_bytes, event.reply_bytes = self.body.size, self.reply.sent_bytes + len(last)
        if captures(self.context.settings):
            self._capture()
        self.context.bus.publish(event)

    def _usage(self, tee: Tee) -> Usage:
        """What the provider stated goes before what was counted."""
        stated, counter = tee.usage(), self.counter
        if counter is None:
            return stated
        usage = stated if stated.source != "none" else counter.usage()
        counter.drop()
        return usage

    def _capture(self) -> None:
        settings, event = self.context.settings, self.event
        event.request_body = request_text(self.request.headers, self.body.held, settings.observability_max_request_body_bytes)
        event.reply_body = reply_text(self.tee or self.replayed, settings.observability_max_response_body_bytes)

    def settle(self) -> None:
        """Give back what the call took and did not use."""
        self.context.running.remove(self)
        self.give_back_limits()
        if self._took_limits:
            self.context.limiter.release(self._took_limits)
        if self._took_request and not self.reached_provider:
            self.context.quota.give_back(self.token)
