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
