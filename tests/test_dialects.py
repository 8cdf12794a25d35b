"""Each dialect's clients get errors in the shape that they know."""

import json
from collections.abc import AsyncIterator

import anthropic
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llm_proxy.dialects import error_body, error_headers, error_object, is_anthropic, stream_error
from llm_proxy.errors import RULES, ApiError, DatabaseUnavailable

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"


@pytest.mark.parametrize(
    ("path", "anthropics"),
    [
        ("/v1/messages", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/batches/b1", True),
        ("/v1/messagesX", False),
        ("/v1/chat/completions", False),
        ("/messages", False),
        ("", False),
    ],
)
def test_path_tells_the_dialect(path: str, anthropics: bool) -> None:
    assert is_anthropic(path) is anthropics


def test_openais_shape() -> None:
    error = ApiError("param_not_allowed", "No such model.", param="model")
    assert json.loads(error_body(error, OPENAI, "r1")) == {
        "error": {
            "message": "No such model.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "param_not_allowed",
            "source": "proxy",
        }
    }


def test_anthropics_shape() -> None:
    assert error_object(ApiError("invalid_token", "No."), ANTHROPIC, "r1") == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "No.", "code": "invalid_token", "source": "proxy"},
        "request_id": "r1",
    }


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("bad_request", "invalid_request_error"),
        ("token_expired", "authentication_error"),
        ("model_not_allowed", "permission_error"),
        ("endpoint_not_found", "not_found_error"),
        ("request_too_large", "request_too_large"),
        ("method_not_allowed", "invalid_request_error"),
        ("headers_too_large", "invalid_request_error"),
        ("request_limit_exhausted", "rate_limit_error"),
        ("internal_error", "api_error"),
        ("upstream_unavailable", "api_error"),
        ("overloaded", "overloaded_error"),
        ("upstream_timeout", "timeout_error"),
    ],
)
def test_anthropics_types(code: str, kind: str) -> None:
    assert error_object(ApiError(code, "No."), ANTHROPIC, "r1")["error"]["type"] == kind


@pytest.mark.parametrize("code", sorted(RULES))
@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
def test_body_is_an_error_object_for_every_code(code: str, path: str) -> None:
    body = json.loads(error_body(ApiError(code, "Grüße"), path, "r1"))
    assert (body["error"]["code"], body["error"]["message"], body["error"]["source"]) == (code, "Grüße", "proxy")


@pytest.mark.parametrize("code", sorted(RULES))
def test_retry_hints_follow_the_rule(code: str) -> None:
    headers = error_headers(ApiError(code, "No."), "r1")
    assert headers.get("x-should-retry") == {True: "true", False: "false", None: None}[RULES[code].retry]
    assert headers.get("Retry-After") == ("1" if code == "overloaded" else None)
    assert (headers["Content-Type"], headers["X-Request-ID"]) == ("application/json", "r1")


def test_headers_of_the_error_are_kept() -> None:
    headers = error_headers(ApiError("method_not_allowed", "No.", headers={"Allow": "GET, POST"}), "r1")
    assert headers["Allow"] == "GET, POST"
    assert error_headers(DatabaseUnavailable(), "r1")["Retry-After"] == "1"


def test_last_event_of_a_stream_names_itself_where_the_dialect_has_names() -> None:
    error = ApiError("upstream_timeout", "Too slow.")
    plain, named = stream_error(error, OPENAI, "r1"), stream_error(error, ANTHROPIC, "r1")
    assert plain == b"data: " + error_body(error, OPENAI, "r1") + b"\n\n"
    assert named == b"event: error\ndata: " + error_body(error, ANTHROPIC, "r1") + b"\n\n"


@pytest.fixture
async def refusing() -> AsyncIterator[str]:
    """A server that refuses with the code that the path begins with, in the dialect of what follows."""

    async def refuse(request: web.Request) -> web.Response:
        error, path = ApiError(request.match_info["code"], "What to do."), request.match_info["path"]
        return web.Response(status=error.status, body=error_body(error, path, "r1"), headers=error_headers(error, "r1"))

    app = web.Application()
    app.router.add_post("/{code}{path:/.*}", refuse)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.mark.parametrize("code", sorted(RULES))
async def test_real_clients_find_code_and_text(refusing: str, code: str) -> None:
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{refusing}/{code}/v1", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError, match="What to do") as refused:
            await client.chat.completions.create(model="m", messages=[])
    assert (refused.value.code, refused.value.type, refused.value.status_code) == (code, RULES[code].type, RULES[code].status)
    async with anthropic.AsyncAnthropic(api_key="k", base_url=f"{refusing}/{code}", max_retries=0) as claude:
        with pytest.raises(anthropic.APIStatusError, match="What to do") as denied:
            await claude.messages.create(model="m", max_tokens=1, messages=[])
    assert (denied.value.status_code, denied.value.body["error"]["code"]) == (RULES[code].status, code)  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("code", "tries"), [("upstream_unavailable", 2), ("shutting_down", 2), ("invalid_token", 1), ("request_limit_exhausted", 1)]
)
async def test_real_clients_try_again_where_it_may_help(code: str, tries: int) -> None:
    seen: list[str] = []

    async def refuse(request: web.Request) -> web.Response:
        seen.append(request.path)
        error = ApiError(code, "What to do.")
        return web.Response(status=error.status, body=error_body(error, OPENAI, "r1"), headers=error_headers(error, "r1"))

    app = web.Application()
    app.router.add_post(OPENAI, refuse)
    async with (
        TestServer(app) as server,
        openai.AsyncOpenAI(api_key="k", base_url=str(server.make_url("/v1")), max_retries=1) as client,
    ):
        with pytest.raises(openai.APIStatusError):
            await client.chat.completions.create(model="m", messages=[])
    assert len(seen) == tries
