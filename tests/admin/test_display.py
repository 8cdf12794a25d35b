"""Values look the same everywhere."""

import dataclasses

import pytest
from stage.house import House

from llm_proxy import tokens
from llm_proxy.admin import display
from llm_proxy.clock import DAY_MS, MINUTE_MS
from llm_proxy.db.sql import Page


@pytest.mark.parametrize(
    ("show", "value", "shown"),
    [
        (display.when, None, "–"),
        (display.when, 0, '<time datetime="1970-01-01T00:00:00.000Z">1970-01-01 00:00:00 UTC</time>'),
        (display.when, "2026-11-21T08:54:37.120Z", '<time datetime="2026-11-21T08:54:37.120Z">2026-11-21 08:54:37 UTC</time>'),
        (display.amount, None, "–"),
        (display.amount, 0, "0"),
        (display.amount, 1234567, "1\u202f234\u202f567"),
        (display.amount, 1234.5, "1\u202f234.5"),
        (display.brief, None, "–"),
        (display.brief, 0, "0"),
        (display.brief, 0.5, "0.5"),
        (display.brief, 9999, "9\u202f999"),
        (display.brief, 10_000, "10\u202fk"),
        (display.brief, 12_345, "12.3\u202fk"),
        (display.brief, 999_499, "999\u202fk"),
        (display.brief, 999_500, "1\u202fM"),
        (display.brief, 1_234_567_890, "1.23\u202fG"),
        (display.brief, 10**16, "10\u202f000\u202fT"),
        (display.rate, 0, "0/min"),
        (display.rate, 0.05, "3/min"),
        (display.rate, 1.26, "1.3/s"),
        (display.rate, 1234.56, "1\u202f235/s"),
        (display.milliseconds, None, "–"),
        (display.milliseconds, 0.4321, "0.432 ms"),
        (display.milliseconds, 320, "320 ms"),
        (display.milliseconds, 999.6, "1 s"),
        (display.milliseconds, 1234, "1.23 s"),
        (display.milliseconds, 61_000, "1 min 1 s"),
        (display.clock, 60_000, '<time datetime="1970-01-01T00:01:00.000Z" data-as="minute">00:01 UTC</time>'),
        (display.minute, 60_000, "1970-01-01 00:01 UTC"),
        (display.size, 0, "0 B"),
        (display.size, 1023, "1023 B"),
        (display.size, 1536, "1.5 KiB"),
        (display.size, 2**50, "1024.0 TiB"),
        (display.percent, None, "–"),
        (display.percent, 0.5, "50.0 %"),
        (display.lasting, None, "–"),
        (display.lasting, 0.0123, "12 ms"),
        (display.lasting, 61, "1 min 1 s"),
        (display.lasting, 90061, "1 d 1 h"),
        (display.lasting, 3600, "1 h"),
        (display.took, None, "–"),
        (display.took, 0.0, "0.00 ms"),
        (display.took, 0.001234, "1.23 ms"),
        (display.took, 0.0987, "98.7 ms"),
        (display.took, 0.5, "500 ms"),
        (display.took, 1.234, "1.23 s"),
        (display.took, 61.25, "61.2 s"),
        (display.took, 3600.0, "1 h"),
        (display.as_json, {"a": "ü"}, '{\n  "a": "ü"\n}'),
        (display.twice, ["a"], [("a", "a")]),
    ],
)
def test_a_value_is_shown(show: object, value: object, shown: object) -> None:
    assert show(value) == shown  # type: ignore[operator]


async def test_a_token_is_expiring_in_the_last_tenth_of_its_time_and_the_last_day(house: House) -> None:
    await house.token(await house.project("http://127.0.0.1:1"))
    [token] = await tokens.find(house.context.database, Page())
    at = token.created_at

    def state(lasts: int, left: int) -> str:
        return display.state_of(dataclasses.replace(token, expires_at=at + lasts), at + lasts - left)

    assert state(10 * MINUTE_MS, MINUTE_MS) == "active"
    assert state(10 * MINUTE_MS, MINUTE_MS - 1) == "expiring"
    assert state(300 * DAY_MS, DAY_MS) == "active"
    assert state(300 * DAY_MS, DAY_MS - 1) == "expiring"
    assert state(DAY_MS, 0) == "expired"
    assert display.state_of(dataclasses.replace(token, expires_at=None), at) == "active"
