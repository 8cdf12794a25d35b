"""The one error tree: what can go wrong, told to people by text and to programs by code.

LLMProxyError
├── StartError                   the process cannot start or go on; the text says what to do
│   └── SettingsError            a setting or file of settings cannot be used
├── ClientGone                   the client left; there is nobody to answer
├── Conflict                     a row breaks a rule of the database, such as a unique name
└── ApiError                     an answer to a client: code, text, and by the code status and type
    ├── NotFound                 not_found
    ├── AlreadyExists            already_exists
    ├── InvalidField             invalid_field, naming the field
    ├── DatabaseUnavailable      database_unavailable
    ├── Overtaken                token_inactive, project_inactive: a running call must end now
    └── UpstreamError            the provider, not the caller, is at fault
        ├── UpstreamUnavailable  upstream_unavailable
        │   └── UpstreamResting  upstream_unavailable with 503: every provider is left alone for now
        ├── UpstreamTLSError     upstream_tls_error
        ├── UpstreamTimeout      upstream_timeout
        └── UpstreamInvalid      upstream_invalid_response
"""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Rule(NamedTuple):
    """What a code means on the wire.

    Attributes:
        status: the HTTP status.
        type: OpenAI's error type.
        retry: the value of `x-should-retry`, None when the header is left out.
    """

    status: int
    type: str
    retry: bool | None = None


_REQUEST = "invalid_request_error"
_AUTH = "authentication_error"
_UPSTREAM = "upstream_error"
_SERVER = "server_error"

RULES: Mapping[str, Rule] = {
    # Who calls.
    "invalid_token": Rule(401, _AUTH, False),
    "token_expired": Rule(401, _AUTH, False),
    "token_inactive": Rule(401, _AUTH, False),
    "project_inactive": Rule(403, "permission_error", False),
    "ended_by_operator": Rule(403, "permission_error", False),
    "invalid_management_token": Rule(401, _AUTH, False),
    "invalid_form": Rule(403, "permission_error", False),
    "too_many_failures": Rule(429, "rate_limit_error", False),
    # What may be called.
    "model_not_allowed": Rule(403, "permission_error", False),
    "endpoint_not_found": Rule(404, _REQUEST, False),
    "method_not_allowed": Rule(405, _REQUEST, False),
    "param_not_allowed": Rule(400, _REQUEST, False),
    "origin_not_allowed": Rule(403, _REQUEST, False),
    "origin_required": Rule(400, _REQUEST, False),
    "header_required": Rule(400, _REQUEST, False),
    "model_not_found": Rule(404, _REQUEST, False),
    "websocket_not_supported": Rule(426, _REQUEST, False),
    # How it is said.
    "bad_request": Rule(400, _REQUEST, False),
    "invalid_header": Rule(400, _REQUEST, False),
    "invalid_path": Rule(400, _REQUEST, False),
    "invalid_json": Rule(400, _REQUEST, False),
    "duplicate_key": Rule(400, _REQUEST, False),
    "encoded_body": Rule(400, _REQUEST, False),
    "conflicting_credentials": Rule(400, _REQUEST, False),
    "token_in_query": Rule(400, _REQUEST, False),
    "model_must_come_first": Rule(400, _REQUEST, False),
    "target_too_long": Rule(414, _REQUEST, False),
    "request_too_large": Rule(413, _REQUEST, False),
    "headers_too_large": Rule(431, _REQUEST, False),
    "request_timeout": Rule(408, _REQUEST, False),
    "expectation_failed": Rule(417, _REQUEST, False),
    "unknown_host": Rule(421, _REQUEST, False),
    "only_if_cached": Rule(504, _REQUEST, False),
    # How much.
    "request_limit_exhausted": Rule(429, "insufficient_quota", False),
    "rate_limit_exceeded": Rule(429, "rate_limit_error"),
    "rate_limits_unavailable": Rule(503, _SERVER),
    "overloaded": Rule(503, _SERVER),
    # What stands behind us.
    "database_unavailable": Rule(503, _SERVER),
    "cache_unavailable": Rule(503, _SERVER),
    "events_unavailable": Rule(503, _SERVER),
    "upstream_unavailable": Rule(502, _UPSTREAM, True),
    "upstream_tls_error": Rule(502, _UPSTREAM, True),
    "upstream_timeout": Rule(504, _UPSTREAM, True),
    "upstream_invalid_response": Rule(502, _UPSTREAM, True),
    "shutting_down": Rule(503, _SERVER, True),
    "internal_error": Rule(500, _SERVER),
    # Management.
    "invalid_field": Rule(400, _REQUEST),
    "masked_secret": Rule(400, _REQUEST),
    "not_found": Rule(404, _REQUEST),
    "already_exists": Rule(409, _REQUEST),
    "several_providers": Rule(409, _REQUEST),
    "built_in_project": Rule(409, _REQUEST),
    "invalid_profiles": Rule(409, _REQUEST),
}


class LLMProxyError(Exception):
    """Everything this program raises on purpose."""


class StartError(LLMProxyError):
    """The process cannot start; the text says why and what to do."""


class SettingsError(StartError):
    """A setting, or a file of settings, cannot be used."""


class ClientGone(LLMProxyError):
    """The client left, or does not read any more."""


class Conflict(LLMProxyError):
    """A row breaks a rule of the database: its name or id is taken, or what it refers to is gone."""


class ApiError(LLMProxyError):
    """An answer to a client.

    Args:
        code: a key of `RULES`; it settles status and type.
        message: safe to show; it says what is wrong and how to mend it, and echoes no secret.
        param: the field or parameter at fault.
        headers: further headers of the answer, such as `Allow`.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.headers: dict[str, str] = dict(headers or {})

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return RULES[self.code].status

    @property
    def type(self) -> str:
        """OpenAI's error type."""
        return RULES[self.code].type


class NotFound(ApiError):
    """There is no such thing. The id is not repeated: somebody may have pasted a token in its place."""

    def __init__(self, what: str) -> None:
        super().__init__("not_found", f"There is no {what} with this id.")


class AlreadyExists(ApiError):
    """A name or id is taken."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__("already_exists", message, param=param)


class InvalidField(ApiError):
    """A field of a request cannot be used."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__("invalid_field", f"{field}: {problem}", param=field)


class DatabaseUnavailable(ApiError):
    """The database does not answer, and the request cannot do without it."""

    def __init__(self, message: str = "The database does not answer. Try again shortly.") -> None:
        super().__init__("database_unavailable", message, headers={"Retry-After": "1"})


class Overtaken(ApiError):
    """A running call lost its permission: its token was revoked or its project deactivated."""


class UpstreamError(ApiError):
    """The provider did not answer as it should.

    Args:
        message: what happened, without the provider's address or key.
        sent: whether any byte of the request may have reached the provider.
    """

    kind = "upstream_unavailable"

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(self.kind, message)
        self.sent = sent


class UpstreamUnavailable(UpstreamError):
    """No connection could be made, or it broke before an answer."""


class UpstreamResting(UpstreamUnavailable):
    """Every provider that could serve the call is left alone for now.

    Args:
        seconds: until the first of them may be asked again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__("Every provider that serves this call is failing or asked for a pause. Try again shortly.")
        self.headers["Retry-After"] = str(max(1, math.ceil(seconds)))

    @property
    def status(self) -> int:
        """503, as trying again soon may go well."""
        return 503


class UpstreamTLSError(UpstreamError):
    """The provider's certificate or TLS handshake is wrong."""

    kind = "upstream_tls_error"


class UpstreamTimeout(UpstreamError):
    """The provider was too slow."""

    kind = "upstream_timeout"


class UpstreamInvalid(UpstreamError):
    """The provider's answer is not HTTP that may be passed on."""

    kind = "upstream_invalid_response"
