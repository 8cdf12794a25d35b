"""Errors, as each dialect's clients expect them."""

from typing import Any

import orjson

from llm_proxy.errors import RULES, ApiError

# Anthropic's own names for what OpenAI's types mean (its error documentation).
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def is_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's dialect."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def error_object(error: ApiError, path: str, request_id: str) -> dict[str, Any]:
    """The error in the dialect of the path that was called."""
    common = {"message": error.message, "code": error.code, "source": "proxy"}
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, **common}, "request_id": request_id}
    return {"error": {"type": error.type, "param": error.param, **common}}


def error_body(error: ApiError, path: str, request_id: str) -> bytes:
    """The whole body of an error answer."""
    return orjson.dumps(error_object(error, path, request_id))


def error_headers(error: ApiError, request_id: str) -> dict[str, str]:
    """The headers of an error answer, the retry hints of the official SDKs included."""
    headers = {"Content-Type": "application/json", "X-Request-ID": request_id, **error.headers}
    retry = RULES[error.code].retry
    if retry is not None:
        headers["x-should-retry"] = "true" if retry else "false"
    if error.code == "overloaded":
        headers.setdefault("Retry-After", "1")
    return headers


def stream_error(error: ApiError, path: str, request_id: str) -> bytes:
    """The error as the last event of a stream that has begun."""
    data = b"data: " + error_body(error, path, request_id) + b"\n\n"
    return b"event: error\n" + data if is_anthropic(path) else data
