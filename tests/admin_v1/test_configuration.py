"""Version, reload and validation in /admin/v1, on both sites."""

from pathlib import Path

from stage.house import open_house, settings_for
from stage.management import Management, managing
from stage.secrets import used

from llm_proxy.providers.profile_file import packaged_path


def write(file: Path, text: str) -> None:
    """Put a text into a file."""
    file.write_text(text)


async def test_the_version_rises_with_every_change_and_with_no_reading(site: Management) -> None:
    before = await site.done("GET", "/admin/v1/config/version")
    assert before == {"version": 0, "timestamp": None}
    await site.done("GET", "/admin/v1/providers")
    assert await site.done("GET", "/admin/v1/config/version") == before
    await site.done("POST", "/admin/v1/providers", {"api_key": used("sk-pool-0123456789")})
    after = await site.done("GET", "/admin/v1/config/version")
    assert after["version"] == 1
    assert after["timestamp"].endswith("Z")


async def test_a_reload_says_what_is_in_force(site: Management) -> None:
    for body in ({"id": "on"}, {"id": "off", "is_enabled": False}):
        await site.done("POST", "/admin/v1/providers", {"api_key": used("sk-pool-0123456789"), **body})
    used((await site.done("POST", "/admin/v1/master-keys", {"name": "one"}))["key"])
    done = await site.done("POST", "/admin/v1/config/reload")
    assert {name: done[name] for name in ("version", "providers_count", "credentials_count")} == {
        "version": 4,
        "providers_count": 1,
        "credentials_count": 1,
    }


async def test_a_bad_file_is_refused_with_its_reason_and_audited(tmp_path: Path) -> None:
    file = tmp_path / "profiles.yaml"
    write(file, packaged_path().read_text())
    async with open_house(settings_for(tmp_path, API_CONFIG_PATH=str(file))) as house, managing(house) as api:
        write(file, "default_api: openai\napis: []\n")
        reply = await api.ask("POST", "/admin/v1/config/reload")
        assert (reply.status, reply.error["code"]) == (409, "invalid_profiles")
        assert f"{file}:2: apis must be a mapping" in reply.error["message"]
        [event] = await api.audited(action="config.reload")
        assert (event["outcome"], event["reason"]) == ("failure", "invalid_profiles")
        assert await api.done("GET", "/admin/v1/config/version") == {"version": 0, "timestamp": None}


async def test_a_good_credential_is_valid(site: Management) -> None:
    assert await site.done("POST", "/admin/v1/auth/validate") == {"valid": True, "message": "The management token is good."}
    assert (await site.refused("POST", "/admin/v1/auth/validate", token="guess"))[:2] == (401, "invalid_management_token")
