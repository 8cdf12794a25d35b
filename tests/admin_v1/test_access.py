"""Who may use /admin/v1, on either site."""

from pathlib import Path

from stage.house import MANAGEMENT_TOKEN, House, open_house, settings_for
from stage.management import managing

from llm_proxy.admin_v1 import ROUTES
from llm_proxy.manage import ROUTES as MANAGE_ROUTES


async def test_every_route_of_both_sites_asks_a_stranger_for_the_management_token(tmp_path: Path) -> None:
    assert len(ROUTES) == 25
    async with open_house(settings_for(tmp_path, TRUSTED_PROXIES="127.0.0.1")) as house:
        for admin in (False, True):
            async with managing(house, admin=admin) as api:
                for number, (method, path, _) in enumerate(ROUTES):
                    headers = {"X-Forwarded-For": f"203.0.{admin:d}.{number}"}
                    for token in (None, f"{MANAGEMENT_TOKEN}x"):
                        reply = await api.ask(method, path.replace("{id}", "one"), token=token, headers=headers)
                        assert (reply.status, reply.error["code"]) == (401, "invalid_management_token"), path
                        assert reply.headers["WWW-Authenticate"] == "Bearer"


async def test_a_wrong_credential_is_audited_and_ten_of_them_are_too_many(house: House) -> None:
    async with managing(house) as api, managing(house, admin=True) as admin:
        await admin.ask("POST", "/admin/v1/auth/validate", token="guess")
        [event] = await api.audited(action="management.refuse")
        assert (event["path"], event["outcome"], event["reason"]) == (
            "/admin/v1/auth/validate",
            "denied",
            "invalid_management_token",
        )
        for _ in range(9):
            await api.ask("GET", "/admin/v1/providers", token="guess")
        assert (await admin.refused("GET", "/admin/v1/providers"))[:2] == (429, "too_many_failures"), "one count for both sites"


async def test_other_paths_below_admin_are_a_call_on_the_proxy_site(house: House) -> None:
    async with managing(house) as api:
        assert (await api.ask("GET", "/admin/v1x")).error["code"] == "invalid_token"
        assert (await api.ask("GET", "/admin/v1/nothing")).error["code"] == "endpoint_not_found"
    assert not {path for _, path, _ in ROUTES} & {path for _, path, _ in MANAGE_ROUTES}
