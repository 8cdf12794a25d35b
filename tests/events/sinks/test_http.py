"""Tests of what a sink's answers mean."""

import pytest

from llm_proxy.events.sinks.http import seconds_of, verdict_of

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(200, "delivered"), (204, "delivered"), (400, "refused"), (413, "refused"), (422, "refused"), (500, "failed")],
        *[(status, "away") for status in (301, 401, 403, 404, 408, 429, 502, 503, 504)],
    ],
)
def test_what_a_status_means(status: int, kind: str) -> None:
    assert verdict_of(status, "", b"", NOW).kind == kind


def test_a_reason_quotes_the_answer_without_secrets() -> None:
    verdict = verdict_of(400, "", b"no good: Bearer abcdefghijkl" + b"x" * 9999, NOW)
    assert verdict.reason.startswith("400 no good: Bearer ****")
    assert len(verdict.reason) < 600


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("7", 7),
        (" 7 ", 7),
        ("99999999999999999999", 300),
        ("-5", 0),
        ("soon", 0),
        ("٣", 0),
        ("Mon, 21 Sep 2026 14:13:30 GMT", 10),
        ("Mon, 21 Sep 2026 14:13:30 -0000", 10),
        ("Mon, 21 Sep 2020 14:13:30 GMT", 0),
        ("Fri, 21 Sep 9999 14:13:30 GMT", 300),
        ("Fri, 99 Sep 2026 14:13:30 GMT", 0),
    ],
)
def test_how_long_a_sink_asks_to_be_left_alone(text: str, seconds: float) -> None:
    assert seconds_of(text, NOW) == seconds
