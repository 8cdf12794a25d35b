"""The cache at the management API."""

from stage.asking import BODY, CHAT
from stage.cached import MODELS, key_of, numbered, tenant_of
from stage.house import House
from stage.management import Management
from stage.provider import ScriptedProvider


async def test_figures_are_shown_in_all_and_by_project(house: House, api: Management, provider: ScriptedProvider) -> None:
    empty = await api.done("GET", "/manage/cache")
    assert empty == {
        "object": "cache",
        "enabled": True,
        "backend": "in-memory",
        "degraded": False,
        "entries": 0,
        "bytes": 0,
        "hits": 0,
        "misses": 0,
        "bypass": 0,
        "hit_ratio": None,
        "projects": [],
    }
    provider.script = numbered()
    busy, idle = [await tenant_of(house, provider) for _ in range(2)]
    for tenant, times in ((busy, 4), (idle, 1)):
        for _ in range(times):
            await tenant.send()
    await idle.send(method="POST", path=CHAT, body=BODY)
    found = await api.done("GET", "/manage/cache")
    rows = {row["project_id"]: row for row in found["projects"]}
    assert found["entries"] == 2 and found["bytes"] == sum(row["bytes"] for row in rows.values()) > 0
    assert (found["hits"], found["misses"], found["bypass"], found["hit_ratio"]) == (3, 2, 1, 0.6)
    assert [rows[busy.project][name] for name in ("entries", "hits", "misses", "bypass", "hit_ratio")] == [1, 3, 1, 0, 0.75]
    assert [rows[idle.project][name] for name in ("entries", "hits", "misses", "bypass", "hit_ratio")] == [1, 0, 1, 1, 0.0]
    assert (await api.ask("GET", "/manage/cache", params={"project": "x"})).status == 400


async def test_a_purge_answers_how_many_are_gone(house: House, api: Management, provider: ScriptedProvider) -> None:
    provider.script = numbered()
    tenant = await tenant_of(house, provider)
    key = key_of(await tenant.send())
    await tenant.send(path=f"{MODELS}/x")
    assert await api.done("POST", "/manage/cache/purge", {"key": key}) == {"deleted": 1}
    assert await api.done("POST", "/manage/cache/purge", {"key": key}) == {"deleted": 0}
    assert await tenant.how() == "stored"
    assert await api.done("POST", "/manage/cache/purge", {"all": True}) == {"deleted": 2}
    [newest, *_] = await api.audit(action="cache.purge")
    assert newest["actor"].startswith("operator:") and newest["details"] == {"purged": {"all": True}, "deleted": 2}
    assert await api.refused("POST", "/manage/cache/purge", {"prefix": "x"}) == (400, "invalid_field", "prefix")
    assert (await api.refused("POST", "/manage/cache/purge", {"all": True}, token=tenant.token))[0] == 401
