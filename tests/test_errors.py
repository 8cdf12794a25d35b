"""The error tree is the one that is drawn, and every code means what the specification says."""

import ast
import inspect
import pathlib
import re

import pytest

import llm_proxy
from llm_proxy import errors
from llm_proxy.errors import (
    RULES,
    AlreadyExists,
    ApiError,
    DatabaseUnavailable,
    InvalidField,
    LLMProxyError,
    NotFound,
    Overtaken,
    StartError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTLSError,
    UpstreamUnavailable,
)

SOURCES = {path: path.read_text() for path in pathlib.Path(llm_proxy.__file__).parent.rglob("*.py")}


def drawn() -> dict[str, str]:
    """Each class of the docstring's tree with the one it hangs from."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│├└─ ]*)([A-Z]\w+)(?:  |$)", line):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            parents[match[2]] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_tree_is_the_one_that_is_drawn() -> None:
    classes = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, Exception)]
    assert drawn() == {item.__name__: item.__bases__[0].__name__ for item in classes}


# proxy.md, "Errors"; what the specification leaves open is None.
TABLE = [
    ("invalid_token", 401, "authentication_error", False),
    ("token_expired", 401, "authentication_error", False),
    ("token_inactive", 401, "authentication_error", False),
    ("project_inactive", 403, "permission_error", False),
    ("model_not_allowed", 403, "permission_error", False),
    ("endpoint_not_found", 404, "invalid_request_error", False),
    ("method_not_allowed", 405, "invalid_request_error", False),
    ("param_not_allowed", 400, "invalid_request_error", False),
    ("origin_not_allowed", 403, "invalid_request_error", False),
    ("origin_required", 400, "invalid_request_error", False),
    ("bad_request", 400, "invalid_request_error", False),
    ("invalid_header", 400, "invalid_request_error", False),
    ("invalid_path", 400, "invalid_request_error", False),
    ("invalid_json", 400, "invalid_request_error", False),
    ("duplicate_key", 400, "invalid_request_error", False),
    ("encoded_body", 400, "invalid_request_error", False),
    ("conflicting_credentials", 400, "invalid_request_error", False),
    ("token_in_query", 400, "invalid_request_error", False),
    ("model_must_come_first", 400, "invalid_request_error", False),
    ("target_too_long", 414, "invalid_request_error", False),
    ("request_too_large", 413, "invalid_request_error", False),
    ("headers_too_large", 431, "invalid_request_error", False),
    ("request_timeout", 408, "invalid_request_error", False),
    ("expectation_failed", 417, "invalid_request_error", False),
    ("unknown_host", 421, "invalid_request_error", False),
    ("request_limit_exhausted", 429, "insufficient_quota", False),
    ("model_not_found", 404, "invalid_request_error", False),
    ("overloaded", 503, "server_error", None),
    ("database_unavailable", 503, "server_error", None),
    ("upstream_unavailable", 502, "upstream_error", True),
    ("upstream_tls_error", 502, "upstream_error", True),
    ("upstream_timeout", 504, "upstream_error", True),
    ("upstream_invalid_response", 502, "upstream_error", True),
    ("internal_error", 500, "server_error", None),
    ("websocket_not_supported", 426, "invalid_request_error", False),
    ("invalid_field", 400, "invalid_request_error", None),
    ("masked_secret", 400, "invalid_request_error", None),
    ("not_found", 404, "invalid_request_error", None),
    ("already_exists", 409, "invalid_request_error", None),
    ("several_providers", 409, "invalid_request_error", None),
    ("too_many_failures", 429, "rate_limit_error", False),
]


@pytest.mark.parametrize(("code", "status", "type", "retry"), TABLE, ids=[row[0] for row in TABLE])
def test_code_means_what_the_specification_says(code: str, status: int, type: str, retry: bool | None) -> None:
    assert RULES[code] == (status, type, retry)
    error = ApiError(code, "No.")
    assert (error.status, error.type) == (status, type)


@pytest.mark.parametrize("code", sorted(RULES))
def test_every_code_is_used(code: str) -> None:
    assert sum(text.count(f'"{code}"') for text in SOURCES.values()) > 1


def test_no_error_has_a_code_without_a_rule() -> None:
    wrong = [(path.name, code) for path, text in SOURCES.items() for code in raised_in(text) if code not in RULES]
    assert wrong == []


def raised_in(text: str) -> list[object]:
    """The codes with which a module raises errors."""
    # Reading every module as Python would take seconds.
    if "ApiError(" not in text and "Overtaken(" not in text:
        return []
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.args]
    raised = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("ApiError", "Overtaken")]
    return [call.args[0].value for call in raised if isinstance(call.args[0], ast.Constant)]


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (NotFound("project"), "not_found", None),
        (AlreadyExists("The name is taken.", "name"), "already_exists", "name"),
        (InvalidField("name", "give text."), "invalid_field", "name"),
        (DatabaseUnavailable(), "database_unavailable", None),
        (Overtaken("token_inactive", "Revoked."), "token_inactive", None),
        (UpstreamUnavailable("No."), "upstream_unavailable", None),
        (UpstreamTLSError("No."), "upstream_tls_error", None),
        (UpstreamTimeout("No."), "upstream_timeout", None),
        (UpstreamInvalid("No."), "upstream_invalid_response", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ApiError) else None,
)
def test_class_settles_the_code(error: ApiError, code: str, param: str | None) -> None:
    assert (error.code, error.param, str(error)) == (code, param, error.message)


def test_texts_say_what_is_wrong() -> None:
    assert NotFound("project").message == "There is no project with this id."
    assert InvalidField("name", "give text.").message == "name: give text."


def test_database_away_is_worth_another_try_soon() -> None:
    assert DatabaseUnavailable().headers == {"Retry-After": "1"}


def test_upstream_error_knows_whether_anything_was_sent() -> None:
    assert not UpstreamTimeout("No.").sent
    assert UpstreamTimeout("No.", sent=True).sent
    assert issubclass(UpstreamInvalid, UpstreamError)


def test_headers_belong_to_one_error() -> None:
    given = {"Allow": "GET"}
    error = ApiError("method_not_allowed", "No.", headers=given)
    error.headers["X"] = "y"
    assert given == {"Allow": "GET"}


def test_everything_raised_on_purpose_has_one_root() -> None:
    assert issubclass(StartError, LLMProxyError)
    assert issubclass(ApiError, LLMProxyError)
    assert not issubclass(StartError, ApiError)
