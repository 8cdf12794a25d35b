"""Secrets do not show, neither by themselves nor in any text that is redacted."""

import json
import secrets

import hypothesis
import orjson
import pytest
from hypothesis import strategies

from llm_proxy.secret import Secret, looks_masked, mask, redact


def test_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("correct horse battery")
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>30}", "%s" % secret, repr([secret]), repr({"k": secret})]  # noqa: UP031
    shown += [orjson.dumps({"k": secret}, default=str).decode(), json.dumps([secret], default=repr)]
    assert not [text for text in shown if "horse" in text]
    assert secret.reveal() == "correct horse battery"


def test_secret_has_no_attributes_to_dump() -> None:
    assert not hasattr(Secret("correct horse battery"), "__dict__")


@pytest.mark.parametrize(("value", "true"), [("", False), ("x", True)])
def test_empty_secret_is_false(value: str, true: bool) -> None:
    assert bool(Secret(value)) is true


@hypothesis.given(
    strategies.text(max_size=30), strategies.text("abcXYZ019-_.:/@ é", min_size=7, max_size=40), strategies.text(max_size=30)
)
def test_live_secret_is_found_wherever_it_stands(before: str, value: str, after: str) -> None:
    # It stays known for a while, and eight equal letters, say, would be taken from the texts of other tests too.
    secret = Secret(f"§{value}")
    assert secret.reveal() not in redact(before + secret.reveal() + after)


@pytest.mark.parametrize("offset", range(12))
@pytest.mark.parametrize("size", range(8, 14))
def test_no_place_hides_a_live_secret(offset: int, size: int) -> None:
    secret = Secret(secrets.token_hex(10)[:size])
    assert redact("." * offset + secret.reveal()) == "." * offset + "****"


def test_secret_that_begins_like_another_goes_whole() -> None:
    short, long = Secret("key-of-house"), Secret("key-of-house-and-garden")
    assert redact("key-of-house-and-garden, key-of-house") == "****, ****"
    assert short and long


def test_one_of_thousands_is_found() -> None:
    live = [Secret("key." + secrets.token_hex(16)) for _ in range(3000)]
    assert redact(f"a={live[0].reveal()} b={live[1500].reveal()} c={live[-1].reveal()}") == "a=**** b=**** c=****"


def test_text_that_was_clean_is_searched_again_for_a_new_secret() -> None:
    value = "clean." + secrets.token_hex(16)
    assert redact(value) == redact(value) == value
    secret = Secret(value)
    assert redact(value) == "****"
    assert secret


def test_secret_of_a_dead_object_is_forgotten_in_time() -> None:
    value = "dead." + secrets.token_hex(16)
    Secret(value)
    for _ in range(20_000):
        Secret(secrets.token_hex(16))
        if redact(value) == value:
            return
    pytest.fail("the registry grows for ever")


def test_secret_survives_the_sweeping_of_others() -> None:
    kept = Secret("kept." + secrets.token_hex(16))
    for _ in range(5000):
        Secret(secrets.token_hex(16))
    assert redact(kept.reveal()) == "****"


@pytest.mark.parametrize("value", ['pass"word-1', "back\\slash-2", "two\nlines-of-it", "tab\tinside-it", "grüße-an-alle"])
def test_secret_is_found_in_json_which_stays_json(value: str) -> None:
    secret = Secret(value)
    text = orjson.dumps({"message": f'he said "{value}".'}).decode()
    assert json.loads(redact(text)) == {"message": 'he said "****".'}
    assert secret


def test_short_secrets_do_not_blank_out_words() -> None:
    secret = Secret("debug")
    assert redact("level=debug") == "level=debug"
    assert secret


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("key sk-proj-AbCdEf0123456789", "key sk-****"),
        ("sk-lp-01A2b3C4d5E6f7G8h9 was used", "sk-**** was used"),
        ("(sk-ant-api03-xyz_987-abc)", "(sk-****)"),
        ("api_key_sk-abcdefgh12", "api_key_sk-****"),
        (r'{"m":"keys:\nsk-abcdefgh12"}', r'{"m":"keys:\nsk-****"}'),
        ("Bearer Bearer abcdefghi, Basic Bearer abcdefghi", "Bearer **** ****, Basic **** ****"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ****"),
        ("authorization: BEARER   abcdef", "authorization: BEARER   ****"),
        ("Basic dXNlcjpwYXNz", "Basic ****"),
        ("basic dXNlcjpwYXNz or Bearer abcdefgh or BASIC 0123456", "basic **** or Bearer **** or BASIC ****"),
        ("İİ Bearer abcdefghİ, bearer", "İİ Bearer ****İ, bearer"),
        (r'{"m":"sent \"Bearer abcdefgh\""}', r'{"m":"sent \"Bearer ****\""}'),
        ("postgresql://llm:pa55@db:5432/llm", "postgresql://****@db:5432/llm"),
        ("https://user@host/path", "https://****@host/path"),
    ],
)
def test_shape_of_a_credential_is_removed(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "sk-lp-…Zz9Q",
        "the task-management-system",
        "risk-assessment-of-it",
        "sk-short",
        "Bearer",
        "https://host/a@b",
        "a basic one",
        "the forbearer something",
        "GET /v1/chat/completions 200",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("value", "hint"),
    [("sk-0123456789abcdef", "sk-…cdef"), ("0123456789abcdef", "012…cdef"), ("0123456789abcde", "****"), ("", "****")],
)
def test_mask_shows_little_of_long_secrets_and_nothing_of_short_ones(value: str, hint: str) -> None:
    assert mask(value) == hint
    assert looks_masked(hint)


@pytest.mark.parametrize(
    ("value", "masked"), [("****", True), ("sk-…cdef", True), ("sk-...cdef", True), ("sk-abcdef", False), ("", False)]
)
def test_mask_is_recognised(value: str, masked: bool) -> None:
    assert looks_masked(value) is masked
