"""Times go into the database, out of the API, without a millisecond lost."""

import time

import hypothesis
import pytest
from hypothesis import strategies

from llm_proxy.clock import from_rfc3339, now_ms, seconds_asked, to_rfc3339
from llm_proxy.errors import InvalidField

LAST_MS = 253_402_300_799_999


def test_now_is_now_in_milliseconds() -> None:
    assert abs(now_ms() - time.time() * 1000) < 1000


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (1_795_251_277_120, "2026-11-21T08:54:37.120Z"),
        (LAST_MS, "9999-12-31T23:59:59.999Z"),
        (None, None),
    ],
)
def test_time_is_written_in_utc(ms: int | None, text: str | None) -> None:
    assert to_rfc3339(ms) == text


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2026-11-21T08:54:37.12Z", 1_795_251_277_120),
        ("2026-11-21 08:54:37.120+00:00", 1_795_251_277_120),
        ("1970-01-01T00:00:00.0019Z", 1),
        ("9999-12-31T23:59:59.9999Z", LAST_MS),
    ],
)
def test_time_with_a_zone_is_read(text: str, ms: int) -> None:
    assert from_rfc3339("at", text) == ms


@hypothesis.given(strategies.integers(min_value=0, max_value=LAST_MS))
def test_every_millisecond_comes_back(ms: int) -> None:
    assert from_rfc3339("at", to_rfc3339(ms)) == ms


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("2026-12-31T23:59:59", id="no zone"),
        pytest.param("2026-12-31", id="no time"),
        pytest.param("2026-13-01T00:00:00Z", id="no such month"),
        pytest.param("9999-12-31T23:59:59-23:59", id="beyond year 9999 in UTC"),
        pytest.param("0001-01-01T00:00:00+23:59", id="before year 1 in UTC"),
        pytest.param("tomorrow", id="word"),
        pytest.param("", id="empty"),
        pytest.param(1_795_251_277, id="number"),
        pytest.param(None, id="null"),
    ],
)
def test_anything_else_is_refused_by_the_field_s_name(given: object) -> None:
    with pytest.raises(InvalidField, match="expires_at: give a time such as 2026-12-31T23:59:59Z") as caught:
        from_rfc3339("expires_at", given)
    assert caught.value.param == "expires_at"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3),
        (" 120 ", 120),
        ("9" * 40, 999_999_999),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30),
        ("Fri, 15 Jan 2027 08:00:30 -0000", 30),
        ("Fri, 15 Jan 2027 07:59:00 GMT", 0),
        ("-3", 0),
        ("1.5", 0),
        ("\u0663", 0),
        ("soon", 0),
        ("", 0),
    ],
)
def test_a_pause_is_asked_for_as_seconds_or_as_a_date(text: str, seconds: float) -> None:
    assert seconds_asked(text, 1_800_000_000.0) == seconds
