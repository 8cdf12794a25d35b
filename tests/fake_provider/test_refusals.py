"""The fake provider's own errors look like those of the provider it stands in for."""

import json

import pytest

from llm_proxy.fake_provider.refusals import Refused, error_body


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "invalid_request_error", "invalid_api_key"),
        (429, "requests", "rate_limit_exceeded"),
        (500, "server_error", None),
    ],
)
def test_openais_shape(status: int, kind: str, code: str | None) -> None:
    body = json.loads(error_body(Refused(status, "No."), False, "req_1"))
    assert body == {"error": {"message": "No.", "type": kind, "param": None, "code": code}}


def test_openais_shape_carries_the_code_of_the_refusal() -> None:
    body = json.loads(error_body(Refused(404, "No.", "model_not_found"), False, "req_1"))
    assert body["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ],
)
def test_anthropics_shape(status: int, kind: str) -> None:
    body = json.loads(error_body(Refused(status, "No."), True, "req_1"))
    assert body == {"type": "error", "error": {"type": kind, "message": "No."}, "request_id": "req_1"}
