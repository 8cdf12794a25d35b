"""Policy: who may call what, as far as profiles, heads and bodies tell."""

import dataclasses
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from llm_proxy.errors import ApiError
from llm_proxy.providers.policy import (
    admit,
    check_model,
    check_parameters,
    cors_headers,
    glob_matches,
    model_of,
    needs_model,
    preflight,
    read_object,
    with_model,
)
from llm_proxy.providers.profiles import Auth, Profile

OPENAI = Profile(
    name="openai",
    auth=Auth("Authorization", "Bearer"),
    allowed_endpoints=("/v1/chat/completions", "/v1/files/**"),
    allowed_methods=("GET", "POST"),
)
ANTHROPIC = dataclasses.replace(OPENAI, name="anthropic", allowed_endpoints=("/v1/messages/**",), allowed_methods=("POST",))
FILES = dataclasses.replace(OPENAI, name="files", allowed_endpoints=("/v1/files/**",), allowed_methods=("DELETE", "GET"))
BROWSER = dataclasses.replace(OPENAI, name="browser", allowed_origins=("https://app.example", "https://b.example"))
NEEDS_ORIGIN = dataclasses.replace(BROWSER, name="needs-origin", required_headers=("origin",))
NEEDS_TEAM = dataclasses.replace(OPENAI, name="needs-team", required_headers=("x-team",))
ONE_MODEL = dataclasses.replace(OPENAI, name="one-model", param_whitelist={"model": ("gpt-4o", "gpt-4o-*")})

CHAT = "/v1/chat/completions"


def refusal(
    profiles: list[Profile],
    method: str = "POST",
    path: str = CHAT,
    headers: Mapping[str, str] | None = None,
    parameters: Mapping[str, object] | None = None,
) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admit(profiles, method, path, CIMultiDict(headers or {}), parameters)
    return caught.value


# Heads


@pytest.mark.parametrize(
    ("method", "path", "names"),
    [
        ("POST", CHAT, ["browser", "openai"]),
        ("POST", "/v1/messages", ["anthropic"]),
        ("GET", "/v1/files/f1", ["files", "browser", "openai"]),
        ("DELETE", "/v1/files/f1", ["files"]),
    ],
)
def test_those_that_admit_the_call_stay_in_order(method: str, path: str, names: list[str]) -> None:
    admitted = admit([FILES, BROWSER, ANTHROPIC, OPENAI], method, path, CIMultiDict())
    assert [profile.name for profile in admitted] == names


@pytest.mark.parametrize(
    ("profiles", "method", "path", "headers", "code"),
    [
        ([OPENAI, ANTHROPIC], "POST", "/v1/embeddings", {}, "endpoint_not_found"),
        ([OPENAI], "POST", "/v1/chat/completionsX", {}, "endpoint_not_found"),
        ([OPENAI], "PUT", "/v1/files", {}, "method_not_allowed"),
        ([OPENAI], "post", CHAT, {}, "method_not_allowed"),
        ([BROWSER], "POST", CHAT, {"Origin": "https://evil.example"}, "origin_not_allowed"),
        ([BROWSER], "POST", CHAT, {"Origin": "https://app.example.evil"}, "origin_not_allowed"),
        ([BROWSER], "POST", CHAT, {"Origin": "HTTPS://APP.EXAMPLE"}, "origin_not_allowed"),
        ([BROWSER], "POST", CHAT, {"Origin": "null"}, "origin_not_allowed"),
        ([BROWSER], "POST", CHAT, {"Origin": ""}, "origin_not_allowed"),
        ([NEEDS_ORIGIN], "POST", CHAT, {}, "origin_required"),
        ([NEEDS_ORIGIN], "POST", CHAT, {"Origin": "https://evil.example"}, "origin_not_allowed"),
        ([NEEDS_TEAM], "POST", CHAT, {}, "header_required"),
        ([ANTHROPIC, FILES, BROWSER], "POST", CHAT, {"Origin": "https://evil.example"}, "origin_not_allowed"),
        ([BROWSER, FILES, ANTHROPIC], "POST", CHAT, {"Origin": "https://evil.example"}, "origin_not_allowed"),
        ([ANTHROPIC, FILES], "POST", "/v1/files", {}, "method_not_allowed"),
        ([FILES, ANTHROPIC], "POST", "/v1/files", {}, "method_not_allowed"),
    ],
)
def test_the_most_specific_refusal_is_the_answer(
    profiles: list[Profile], method: str, path: str, headers: dict[str, str], code: str
) -> None:
    assert refusal(profiles, method, path, headers).code == code


@pytest.mark.parametrize(
    ("profile", "headers"),
    [
        (OPENAI, {"Origin": "https://anyone.example"}),
        (BROWSER, {}),
        (BROWSER, {"ORIGIN": "https://app.example"}),
        (NEEDS_ORIGIN, {"origin": "https://b.example"}),
        (NEEDS_TEAM, {"X-Team": "blue"}),
    ],
    ids=["no origins listed", "no origin sent", "listed", "required and listed", "required header"],
)
def test_origin_and_headers_that_fit_are_admitted(profile: Profile, headers: dict[str, str]) -> None:
    assert admit([profile], "POST", CHAT, CIMultiDict(headers)) == [profile]


def test_allow_is_the_union_of_those_that_admit_the_path() -> None:
    patchable = dataclasses.replace(ANTHROPIC, allowed_methods=("PATCH",))
    assert refusal([OPENAI, FILES, patchable], "PUT", "/v1/files/f1").headers == {"Allow": "DELETE, GET, POST"}


def test_a_base_url_without_v1_is_hinted_at() -> None:
    assert "must end in /v1" in refusal([OPENAI], path="/chat/completions").message
    assert "must end in /v1" not in refusal([OPENAI], path="/nothing").message


def test_a_missing_header_is_named() -> None:
    assert refusal([NEEDS_TEAM]).param == "x-team"


def test_refusals_echo_nothing() -> None:
    seen = [
        refusal([OPENAI], "X-MARK", CHAT),
        refusal([OPENAI], "POST", "/x-mark"),
        refusal([BROWSER], headers={"Origin": "https://x-mark"}),
        refusal([ONE_MODEL], parameters={"model": "x-mark"}),
    ]
    assert not [error.message for error in seen if "mark" in error.message.lower()]


# Parameters


@pytest.mark.parametrize(
    ("profiles", "parameters", "names"),
    [
        ([ONE_MODEL, OPENAI], {"model": "o3"}, ["openai"]),
        ([ONE_MODEL, OPENAI], {"model": "gpt-4o"}, ["one-model", "openai"]),
        ([ONE_MODEL], {}, ["one-model"]),
        ([ONE_MODEL], None, ["one-model"]),
    ],
)
def test_parameters_drop_candidates_too(profiles: list[Profile], parameters: dict[str, object] | None, names: list[str]) -> None:
    admitted = admit(profiles, "POST", CHAT, CIMultiDict(), parameters)
    assert [profile.name for profile in admitted] == names


@pytest.mark.parametrize(
    ("profiles", "origin", "code"),
    [
        ([ONE_MODEL, FILES], "https://evil.example", "param_not_allowed"),
        ([FILES, ONE_MODEL, ANTHROPIC], "https://evil.example", "param_not_allowed"),
        ([ONE_MODEL, BROWSER], "https://evil.example", "origin_not_allowed"),
        ([BROWSER, ONE_MODEL], "https://evil.example", "origin_not_allowed"),
    ],
)
def test_a_parameter_is_less_specific_than_origin_and_more_than_method(profiles: list[Profile], origin: str, code: str) -> None:
    assert refusal(profiles, headers={"Origin": origin}, parameters={"model": "o3"}).code == code


@pytest.mark.parametrize(
    ("listed", "value", "fits"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "GPT-4o", False),
        ("gpt-4o-*", "gpt-4o-mini", True),
        ("gpt-[4]?", "gpt-4o", False),
        ("false", False, True),
        ("false", True, False),
        ("1", 1, True),
        ("1", 1.0, False),
        ("1", True, False),
        ("0.5", 0.5, True),
        ("gpt-4o", None, False),
        ("gpt-4o", ["gpt-4o"], False),
        ('["gpt-4o"]', ["gpt-4o"], True),
        ('{"type":"text"}', {"type": "text"}, True),
        ("é*", "école", True),
    ],
)
def test_a_value_must_fit_what_is_listed(listed: str, value: object, fits: bool) -> None:
    profile = dataclasses.replace(OPENAI, param_whitelist={"p": ("never", listed)})
    if fits:
        check_parameters(profile, {"p": value, "other": "x"})
    else:
        with pytest.raises(ApiError) as caught:
            check_parameters(profile, {"p": value})
        assert (caught.value.code, caught.value.param) == ("param_not_allowed", "p")
        assert listed in caught.value.message


def test_a_parameter_in_another_case_is_the_same_parameter() -> None:
    with pytest.raises(ApiError):
        check_parameters(ONE_MODEL, {"Model": "o3"})


def test_what_is_allowed_is_listed_in_bounds() -> None:
    profile = dataclasses.replace(OPENAI, param_whitelist={"p": tuple(f"value-{number}" for number in range(1000))})
    with pytest.raises(ApiError) as caught:
        check_parameters(profile, {"p": "x"})
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("glob", "text", "fits"),
    [
        ("*", "", True),
        ("*", "anything\nat all", True),
        ("a*", "a", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("ab*bc", "abc", False),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("*b*b*", "abb", True),
        ("*b*b*", "ab", False),
        ("**", "x", True),
        ("a.c", "abc", False),
        ("", "", True),
        ("", "x", False),
    ],
)
def test_a_star_alone_is_special_in_a_glob(glob: str, text: str, fits: bool) -> None:
    assert glob_matches(glob, text) is fits


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=5), st.data())
def test_a_glob_fits_whatever_its_stars_are_filled_with(pieces: list[str], data: st.DataObject) -> None:
    filled = pieces[0] + "".join(data.draw(st.text("ab", max_size=3)) + piece for piece in pieces[1:])
    assert glob_matches("*".join(pieces), filled)


@given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
def test_a_glob_fits_only_what_its_stars_can_be_filled_to(glob: str, text: str) -> None:
    def fits(glob: str, text: str) -> bool:
        if not glob:
            return not text
        if glob[0] == "*":
            return any(fits(glob[1:], text[start:]) for start in range(len(text) + 1))
        return text[:1] == glob[0] and fits(glob[1:], text[1:])

    assert glob_matches(glob, text) is fits(glob, text)


# Bodies

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
@pytest.mark.parametrize(
    ("body", "content_type", "fields"),
    [
        (b'{"model": "gpt-4o", "n": 1}', JSON, {"model": "gpt-4o", "n": 1}),
        (b'{"a": 1}', "Application/JSON; charset=utf-16", {"a": 1}),
        (b'{"a": 1}', "application/json;charset=latin-1;x=y", {"a": 1}),
        (b'{"a": 1}', "application/vnd.example+json", {"a": 1}),
        (b'{"a": {"b": 1}, "c": {"b": 2}}', JSON, {"a": {"b": 1}, "c": {"b": 2}}),
        (b'{"a": "\\u00e9 \xc3\xa9 \\ud83d\\ude00"}', JSON, {"a": "é é 😀"}),
        (b"{}", JSON, {}),
        (b" {} \n", JSON, {}),
        (b"", JSON, None),
        (b"", "", None),
        (b"", FORM, None),
        (b"--x\r\n", "multipart/form-data; boundary=x", None),
        (b"model=gpt-4o&n=1&empty=&sp=a+b%20c", FORM, {"model": "gpt-4o", "n": "1", "empty": "", "sp": "a b c"}),
        (b"a=1", FORM + "; charset=utf-8", {"a": "1"}),
    ],
)
def test_a_sound_body_reads_alike(body: bytes, content_type: str, strict: bool, fields: dict[str, object] | None) -> None:
    assert read_object(body, content_type, strict=strict) == fields


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"[]", JSON, "invalid_json"),
        (b'"text"', JSON, "invalid_json"),
        (b"not json", JSON, "invalid_json"),
        (b"{", JSON, "invalid_json"),
        (b" ", JSON, "invalid_json"),
        (b'{"a": 1} x', JSON, "invalid_json"),
        (b"{'a': 1}", JSON, "invalid_json"),
        (b'{"a": "\xe9"}', JSON, "invalid_json"),
        (b'\xef\xbb\xbf{"a": 1}', JSON, "invalid_json"),
        ('{"a": 1}'.encode("utf-16"), JSON, "invalid_json"),
        (b'{"a": NaN}', JSON, "invalid_json"),
        (b'{"a": -Infinity}', JSON, "invalid_json"),
        (b'{"a": ' + b"[" * 100_000, JSON, "invalid_json"),
        (b'{"model": "\\ud800"}', JSON, "invalid_json"),
        (b'{"model": ["\\ud800"]}', JSON, "invalid_json"),
        (b'{"a": 1}', "text/plain", "invalid_json"),
        (b'{"a": 1}', "", "invalid_json"),
        (b'{"a": 1}', "+json", "invalid_json"),
        (b"a=%ff", FORM, "bad_request"),
        (b"a=\xff", FORM, "bad_request"),
        (b"&".join(b"a%d=1" % number for number in range(1001)), FORM, "bad_request"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_policy_cannot_read_is_refused_only_where_it_must(body: bytes, content_type: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_object(body, content_type, strict=True)
    assert caught.value.code == code
    assert read_object(body, content_type, strict=False) is None


def test_a_number_too_long_to_read_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        read_object(b'{"a": ' + b"9" * 5000 + b"}", JSON, strict=True)
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"model": "a", "model": "b"}', JSON),
        (b'{"model": "a", "mod\\u0065l": "b"}', JSON),
        (b'{"model": "a", "x": {"y": 1}, "Model": "b"}', JSON),
        ('{"stream": 1, "\u017ftream": 2}'.encode(), JSON),
        (b'{"x": {"y": 1}, "x": {"y": 1}}', JSON),
        (b"model=a&model=b", FORM),
        (b"model=a&mod%65l=b", FORM),
    ],
)
def test_a_field_that_two_parsers_could_read_differently_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_object(body, content_type, strict=True)
    assert caught.value.code == "duplicate_key"
    assert read_object(body, content_type, strict=False) is not None


def test_keys_of_inner_objects_are_not_policys_concern() -> None:
    body = b'{"x": {"y": 1, "y": 2}, "model": "a", "z": [{"model": "b"}, {"model": "c"}]}'
    assert read_object(body, JSON, strict=True) == {"x": {"y": 2}, "model": "a", "z": [{"model": "b"}, {"model": "c"}]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abc", max_size=5), json_values, max_size=5), st.booleans())
def test_strict_and_lenient_reading_agree_on_sound_json(value: dict[str, object], ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert read_object(body, JSON, strict=True) == read_object(body, JSON, strict=False) == value


@given(st.binary(max_size=40))
def test_strict_reading_never_fails_otherwise_than_by_refusing(body: bytes) -> None:
    for content_type in (JSON, FORM):
        try:
            read_object(body, content_type, strict=True)
        except ApiError as refused:
            assert refused.code in ("invalid_json", "duplicate_key", "bad_request")


# Models


@pytest.mark.parametrize(
    ("path", "parameters", "model"),
    [
        (CHAT, {"model": "gpt-4o"}, "gpt-4o"),
        (CHAT, {"model": ""}, ""),
        (CHAT, {"model": None}, None),
        (CHAT, {"model": ["gpt-4o"]}, '["gpt-4o"]'),
        (CHAT, {"model": 4}, "4"),
        (CHAT, {}, None),
        (CHAT, None, None),
        ("/v1/models", None, None),
        ("/v1/models/", None, None),
        ("/v1/models/gpt-4o", None, "gpt-4o"),
        ("/v1/models/meta/llama-3", None, "meta/llama-3"),
        ("/v1/models/ft%3Agpt%252Fx", None, "ft:gpt%2Fx"),
        ("/v1/modelsX/gpt-4o", None, None),
        ("/openai/models/gpt-4o", None, "gpt-4o"),
        ("/openai/v1/models/gpt-4o", None, "gpt-4o"),
        ("/openai/deployments/gpt-4o/chat/completions", None, "gpt-4o"),
        ("/openai/deployments/my%20gpt/embeddings", None, "my gpt"),
        ("/openai/deployments", None, None),
        ("/openai/deployments/gpt-4o/chat/completions", {"model": "cheap"}, "gpt-4o"),
        ("/v1/models/gpt-4o", {"model": "cheap"}, "gpt-4o"),
    ],
)
def test_the_model_that_a_call_names(path: str, parameters: dict[str, object] | None, model: str | None) -> None:
    assert model_of(path, parameters) == model


@pytest.mark.parametrize(
    ("allowed", "model", "required", "passes"),
    [
        ([], "anything", False, True),
        ([], None, True, True),
        (["gpt-4o"], "gpt-4o", True, True),
        (["gpt-4o"], "gpt-4o-mini", False, False),
        (["gpt-4o"], "GPT-4O", False, False),
        (["o3", "gpt-4*"], "gpt-4o-mini", False, True),
        (["gpt-4?"], "gpt-4o", False, False),
        (["gpt-4o"], "", False, False),
        (["gpt-4o"], '["gpt-4o"]', False, False),
        (["gpt-4o"], None, False, True),
        (["gpt-4o"], None, True, False),
        (["*"], None, True, True),
    ],
)
def test_a_token_uses_its_models_only(allowed: list[str], model: str | None, required: bool, passes: bool) -> None:
    if passes:
        check_model(allowed, model, required=required)
    else:
        with pytest.raises(ApiError) as caught:
            check_model(allowed, model, required=required)
        assert (caught.value.code, caught.value.status, caught.value.param) == ("model_not_allowed", 403, "model")
        assert ", ".join(allowed) in caught.value.message


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("POST", CHAT, True),
        ("POST", "/openai/v1/chat/completions", True),
        ("POST", "/v1/messages", True),
        ("POST", "/v1/messages/batches", True),
        ("POST", "/v1/batches", True),
        ("POST", "/openai/batches", True),
        ("POST", "/openai/responses", True),
        ("POST", "/v1/images/edits", True),
        ("GET", CHAT, False),
        ("POST", "/v1/batches/b1/cancel", False),
        ("POST", "/v1/responses/r1/cancel", False),
        ("POST", "/v1/files", False),
        ("POST", "/v1/threads/t1/messages", False),
        ("GET", "/v1/models", False),
        ("DELETE", "/v1/files/f1", False),
    ],
)
def test_calls_that_run_a_model_must_name_it(method: str, path: str, needed: bool) -> None:
    assert needs_model(method, path) is needed


# Browsers

ALLOW_ORIGIN = "Access-Control-Allow-Origin"


def test_without_configured_origins_browsers_get_nothing() -> None:
    assert cors_headers([OPENAI, FILES], "https://app.example") == {}
    assert preflight([OPENAI, FILES], "https://app.example", requested_headers="authorization") == {}


@pytest.mark.parametrize("origin", ["", "null", "https://evil.example", "https://app.example.evil", "HTTPS://app.example", "*"])
def test_an_origin_that_is_not_listed_gets_vary_only(origin: str) -> None:
    assert cors_headers([OPENAI, BROWSER], origin) == {"Vary": "Origin"}
    assert preflight([OPENAI, BROWSER], origin, requested_headers="authorization") == {"Vary": "Origin"}


def test_a_listed_origin_is_echoed_from_the_union_of_profiles() -> None:
    other = dataclasses.replace(FILES, allowed_origins=("https://c.example",))
    for origin in ("https://app.example", "https://b.example", "https://c.example"):
        headers = cors_headers(iter([OPENAI, BROWSER, other]), origin)
        assert (headers[ALLOW_ORIGIN], headers["Vary"]) == (origin, "Origin")


@pytest.mark.parametrize("name", ["X-Request-ID", "Retry-After", "retry-after-ms", "x-ratelimit-remaining-requests"])
def test_what_a_browsers_program_may_read(name: str) -> None:
    assert name in cors_headers([BROWSER], "https://app.example")["Access-Control-Expose-Headers"].split(", ")


def test_a_preflight_says_methods_headers_and_age() -> None:
    other = dataclasses.replace(FILES, allowed_origins=("https://app.example",))
    stranger = dataclasses.replace(FILES, allowed_methods=("PATCH",), allowed_origins=("https://c.example",))
    headers = preflight(
        iter([BROWSER, other, stranger]), "https://app.example", requested_headers="authorization,Content-Type, x-a"
    )
    assert headers[ALLOW_ORIGIN] == "https://app.example"
    assert headers["Vary"] == "Origin"
    assert headers["Access-Control-Allow-Methods"] == "DELETE, GET, POST"
    assert headers["Access-Control-Allow-Headers"] == "authorization, Content-Type, x-a"
    assert headers["Access-Control-Max-Age"] == "600"
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize(
    "requested",
    ["", ",", "a b", "x-a\r\nSet-Cookie: a", "x-é", "(x)", "a,,b", ",".join(["x"] * 65)],
    ids=lambda text: repr(text)[:20],
)
def test_requested_headers_that_are_no_names_are_not_echoed(requested: str) -> None:
    assert "Access-Control-Allow-Headers" not in preflight([BROWSER], "https://app.example", requested_headers=requested)


@pytest.mark.parametrize(
    ("path", "renamed"),
    [
        ("/v1/models/gpt-4", "/v1/models/acme/4%20b"),
        ("/openai/v1/models/gpt-4", "/openai/v1/models/acme/4%20b"),
        ("/v1/models/meta/llama%203", "/v1/models/acme/4%20b"),
        ("/openai/deployments/gpt-4/chat/completions", "/openai/deployments/acme%2F4%20b/chat/completions"),
        ("/openai/deployments/gpt-4", "/openai/deployments/acme%2F4%20b"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models/"),
        ("/openai/deployments/", "/openai/deployments/"),
        (CHAT, CHAT),
    ],
)
def test_a_path_gets_another_model_where_it_names_one(path: str, renamed: str) -> None:
    assert with_model(path, "acme/4 b") == renamed
    assert model_of(renamed, None) == (None if path == renamed else "acme/4 b")
