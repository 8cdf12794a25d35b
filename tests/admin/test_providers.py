"""The shared pool, and a project's own keys, are run from their pages."""

import pytest
from stage.house import PROVIDER_KEY, House
from stage.management import Management
from stage.provider import ScriptedProvider
from stage.secrets import used
from stage.visitor import Page, Visitor

from llm_proxy.admin.providers import said_of

OTHER_KEY = "sk-provider-another-" + "7f" * 12


@pytest.fixture(params=["shared pool", "own keys"])
async def place(request: pytest.FixtureRequest, api: Management) -> tuple[str, str]:
    """Where new providers are made, and where they are sent to."""
    if request.param == "shared pool":
        return "/admin/new-provider", "/admin/providers"
    id = await api.project()
    return f"/admin/projects/{id}/new-key", f"/admin/projects/{id}/keys"


async def added(visitor: Visitor, place: tuple[str, str], **fields: str) -> Page:
    """The page of a new provider."""
    return await visitor.send(await visitor.get(place[0]), place[1], **{"api_key": used(PROVIDER_KEY), **fields})


async def test_a_provider_is_added_edited_drained_disabled_and_removed(visitor: Visitor, place: tuple[str, str]) -> None:
    page = await added(visitor, place, id="main-1", name="Main", model_mapping="gpt-4* = acme/*", provider_params="region = eu")
    here = f"{place[1]}/main-1"
    assert (page.path, page.title) == (here, "Main")
    assert PROVIDER_KEY not in page.source and page.values["api_key"] == ""
    assert (page.values["model_mapping"], page.values["provider_params"]) == ("gpt-4* = acme/*", "region = eu")
    page = await visitor.send(page, here, weight="5", api_base="https://eu.example.com/v1/", model_mapping="", name="Mine")
    assert (page.title, page.values["weight"], page.values["api_base"]) == ("Mine", "5", "https://eu.example.com/v1")
    assert page.values["model_mapping"] == ""
    page = await visitor.send(page, here, api_key=used(OTHER_KEY), api_base="")
    assert f"…{OTHER_KEY[-4:]}" in page.text and page.values["api_base"] == "https://api.openai.com"
    for state, sign in (("drain", "(drained)"), ("disable", "disabled"), ("enable", "enabled")):
        page = await visitor.send(page, f"{here}/state", state=state)
        assert sign in page.text, state
    page = await visitor.send(page, here, leave_out=("is_enabled",))
    assert "disabled" in page.text
    page = await visitor.send(await visitor.get(f"{here}/delete"), f"{here}/delete")
    assert "The provider was removed" in page.text and here not in page.links
    assert (await visitor.get(here)).status == 404


async def test_what_is_wrong_stands_beside_its_field(visitor: Visitor, place: tuple[str, str]) -> None:
    page = await added(visitor, place, id="one")
    for field, value in (
        ("api_key", "sk-…1234"),
        ("api_base", "ftp://x"),
        ("weight", "-1"),
        ("model_mapping", "a ="),
        ("provider_params", "{"),
        ("id", "a b"),
        ("id", "one"),
    ):
        page = await added(visitor, place, **{field: value})
        assert (page.status, list(page.problems)) == (400, [field]), value
        assert page.values["api_key" if field == "api_key" else field] == value
    here = f"{place[1]}/one"
    page = await visitor.send(await visitor.get(here), here, weight="")
    assert (page.status, list(page.problems)) == (400, ["weight"])


async def test_a_test_is_one_small_real_call(visitor: Visitor, place: tuple[str, str], provider: ScriptedProvider) -> None:
    page = await added(visitor, place, id="one", api_base=provider.url)
    page = await visitor.send(page, f"{place[1]}/one/test")
    assert "The provider answers, within" in page.text
    assert len(provider.exchanges) == 1


def test_a_failed_test_says_why() -> None:
    assert said_of({"error": "the provider refuses the key (401)", "response_time_ms": 3.0}) == (
        "The test failed: the provider refuses the key (401)",
        True,
    )


async def test_the_profiles_are_shown_and_read_anew(visitor: Visitor, api: Management) -> None:
    page = await visitor.get("/admin/profiles")
    assert "https://api.openai.com" in page.text and "x-api-key" in page.text and "/v1/chat/completions" in page.text
    page = await visitor.send(await visitor.get("/admin/providers"), "/admin/reload")
    assert "Read anew: 0 enabled providers" in page.text
    assert len(await api.audit(action="config.reload")) == 1


async def test_a_bad_file_of_profiles_is_told(house: House, visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse() -> None:
        from llm_proxy.errors import SettingsError

        raise SettingsError("line 3: no.")

    monkeypatch.setattr(house.context.live_profiles, "read", refuse)
    page = await visitor.send(await visitor.get("/admin/providers"), "/admin/reload")
    assert "The profiles stay as they were. line 3: no." in page.text
