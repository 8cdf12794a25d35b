"""The fake provider's own errors, in each dialect."""

from typing import Any

import orjson

from llm_proxy.errors import LLMProxyError

# An error's type, with its code in OpenAI's dialect; other statuses fall to the class of the status.
OPENAI_ERRORS = {401: ("invalid_request_error", "invalid_api_key"), 429: ("requests", "rate_limit_exceeded")}
ANTHROPIC_ERRORS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
ANTHROPIC_ERRORS |= {429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error"}


class Refused(LLMProxyError):
    """The fake provider's own error, which a proxy passes on untouched."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def error_body(refused: Refused, anthropic: bool, request_id: str) -> bytes:
    """A provider's error in its dialect."""
    status = refused.status
    fallback = "invalid_request_error" if status < 500 else "api_error" if anthropic else "server_error"
    if anthropic:
        error: dict[str, Any] = {"type": ANTHROPIC_ERRORS.get(status, fallback), "message": str(refused)}
        return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
    kind, code = OPENAI_ERRORS.get(status, (fallback, refused.code))
    return orjson.dumps({"error": {"message": str(refused), "type": kind, "param": None, "code": code}})
