"""Checks of the shared pool in /admin/v1, on both sites."""

import pytest
from stage.management import Management
from stage.secrets import used

KEY = "sk-checked-0123456789"


async def test_each_provider_is_called_and_reported(site: Management, fake: str) -> None:
    for id, base in (("well", fake), ("ill", "http://127.0.0.1:9")):
        await site.done("POST", "/admin/v1/providers", {"id": id, "api_key": used(KEY), "api_base": base})
    found = await site.done("POST", "/admin/v1/health/check", {"models": ["gpt-4o"], "timeout_secs": 5})
    totals = {name: found[name] for name in ("total_providers", "healthy_providers", "unhealthy_providers")}
    assert totals == {"total_providers": 2, "healthy_providers": 1, "unhealthy_providers": 1}
    ill, well = found["providers"]
    assert (ill["provider_id"], ill["status"], well["provider_id"], well["status"]) == ("ill", "unhealthy", "well", "healthy")
    assert ill["models"][0]["error"]
    assert well["models"][0]["response_time_ms"] == well["avg_response_time_ms"] > 0
    one = await site.done("GET", "/admin/v1/health/providers/well")
    assert (one["status"], one["models"][0]["model"]) == ("healthy", None)
    assert KEY not in str(found)


async def test_a_check_is_audited(api: Management) -> None:
    await api.done("POST", "/admin/v1/health/check")
    [event] = await api.audited(action="provider.check")
    assert event["details"] == {"providers": 0, "models": 1}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"provider_ids": []}, "provider_ids"),
        ({"provider_ids": ["nobody"]}, "provider_ids[0]"),
        ({"models": "gpt-4"}, "models"),
        ({"timeout_secs": 0}, "timeout_secs"),
        ({"timeout_secs": 301}, "timeout_secs"),
        ({"max_concurrent": 21}, "max_concurrent"),
        ({"colour": 1}, "colour"),
    ],
)
async def test_what_makes_no_sense_is_refused(api: Management, body: object, param: str) -> None:
    assert await api.refused("POST", "/admin/v1/health/check", body) == (400, "invalid_field", param)
