"""The credential of a call, wherever its SDK puts it."""

import pytest

from llm_proxy.errors import ApiError
from llm_proxy.proxy.credentials import presented_token

Pairs = list[tuple[bytes, bytes]]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"Authorization", b"Bearer tok")], id="bearer"),
        pytest.param([(b"authorization", b"bearer   tok ")], id="bearer-written-otherwise"),
        pytest.param([(b"AUTHORIZATION", b"BEARER tok")], id="bearer-in-capitals"),
        pytest.param([(b"x-api-key", b"tok")], id="x-api-key"),
        pytest.param([(b"X-API-KEY", b" tok ")], id="x-api-key-in-capitals"),
        pytest.param([(b"api-key", b"tok")], id="api-key"),
        pytest.param([(b"Authorization", b"Bearer tok"), (b"x-api-key", b"tok"), (b"api-key", b"tok")], id="all-three-agree"),
        pytest.param([(b"Authorization", b"Bearer tok"), (b"authorization", b"Bearer tok")], id="the-same-twice"),
        pytest.param([(b"Accept", b"*/*"), (b"api-key", b"tok"), (b"Cookie", b"api-key=other")], id="among-others"),
    ],
)
def test_a_token_is_found(headers: Pairs) -> None:
    assert presented_token(headers) == "tok"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        pytest.param([], "invalid_token", id="none"),
        pytest.param([(b"Authorization", b"Basic dG9rOg==")], "invalid_token", id="basic"),
        pytest.param([(b"Authorization", b"tok")], "invalid_token", id="without-bearer"),
        pytest.param([(b"Authorization", b"Bearer")], "invalid_token", id="bearer-alone"),
        pytest.param([(b"Authorization", b"Bearer  ")], "invalid_token", id="bearer-and-blanks"),
        pytest.param([(b"x-api-key", b"")], "invalid_token", id="empty"),
        pytest.param([(b"Authorization", b"Bearer a"), (b"Authorization", b"Bearer b")], "conflicting_credentials", id="two"),
        pytest.param([(b"Authorization", b"Bearer a"), (b"x-api-key", b"b")], "conflicting_credentials", id="disagreeing"),
        pytest.param([(b"x-api-key", b"a"), (b"api-key", b"A")], "conflicting_credentials", id="only-in-case"),
        pytest.param([(b"Authorization", b"Basic x"), (b"x-api-key", b"a")], "conflicting_credentials", id="basic-and-another"),
    ],
)
def test_anything_else_is_refused(headers: Pairs, code: str) -> None:
    with pytest.raises(ApiError) as refusal:
        presented_token(headers)
    assert refusal.value.code == code
    assert code != "invalid_token" or refusal.value.headers == {"WWW-Authenticate": "Bearer"}
