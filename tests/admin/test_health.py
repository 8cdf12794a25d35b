"""Health is shown, and a provider of the pool can be checked from there."""

from stage.house import PROVIDER_KEY, House
from stage.management import Management
from stage.provider import ScriptedProvider, answer
from stage.secrets import used
from stage.visitor import Visitor


async def test_what_is_known_is_shown_and_a_provider_is_checked(
    house: House, visitor: Visitor, api: Management, provider: ScriptedProvider
) -> None:
    page = await visitor.get("/admin/health")
    assert "The shared pool is empty" in page.text and "sqlite" in page.text and "not used" in page.text
    given = {"id": "one", "api_key": used(PROVIDER_KEY), "provider_type": "openai", "api_base": provider.url}
    await api.done("POST", "/admin/v1/providers", given)
    page = await visitor.get("/admin/health")
    assert "openai enabled closed" in page.text
    page = await visitor.send(page, "/admin/providers/one/test")
    assert page.path == "/admin/health" and "one: The provider answers" in page.text

    async def refuse(exchange: object) -> None:
        await exchange.send(answer(b"{}", status=b"401 Unauthorized"))  # type: ignore[attr-defined]

    provider.script = refuse
    page = await visitor.send(page, "/admin/providers/one/test")
    assert "one: The test failed: the provider refuses the key (401)" in page.text
    await house.context.audit.close()
    assert [event["action"] for event in await api.audit(action="provider.check")] == ["provider.check"] * 2
