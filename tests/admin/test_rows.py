"""A call is told in a row of short texts."""

import pytest
from stage.house import House

from llm_proxy.admin.rows import ended_row, provider_name, result_of, tone_of
from llm_proxy.events import Event


def event(outcome: str = "completed", status: int = 200) -> Event:
    """An event that ended like this."""
    return Event("r", None, None, None, "POST", "/v1/x", started_at=0, outcome=outcome, status=status, duration=1.5)


@pytest.mark.parametrize(
    ("outcome", "status", "tone", "result"),
    [
        ("completed", 200, "active", "200 completed"),
        ("cached", 304, "active", "304 cached"),
        ("completed", 429, "revoked", "429 completed"),
        ("refused", 401, "expiring", "401 refused"),
        ("client_gone", 0, "off", "client gone"),
        ("upstream_failed", 502, "revoked", "502 upstream failed"),
        ("internal_error", 500, "revoked", "500 internal error"),
    ],
)
def test_the_result_says_how_it_went(outcome: str, status: int, tone: str, result: str) -> None:
    assert (tone_of(event(outcome, status)), result_of(event(outcome, status))) == (tone, result)


async def test_a_row_has_a_text_for_whatever_is_not_known(house: House) -> None:
    row = ended_row(house.context, event())
    assert (row["at"], row["time"]) == ("1970-01-01T00:00:01.500Z", "1970-01-01 00:00:01 UTC")
    assert (row["project"], row["token"], row["model"], row["provider"], row["tokens"]) == ("–", "", "–", "–", "–")
    assert {type(value) for value in row.values()} == {str}


async def test_a_provider_of_the_pool_goes_by_its_id_and_one_of_a_project_by_its_type(house: House) -> None:
    known = event()
    known.provider, known.provider_type = "0199a1b2-0000-7000-8000-00000000beef", "openai"
    assert provider_name(house.context, known) == "openai …beef"
    house.context.providers.pooled_ids = frozenset({known.provider})
    assert provider_name(house.context, known) == known.provider
