"""A secret is in the one answer that makes it, and nowhere else."""

import re
from pathlib import Path

import aiohttp
from stage.calls import call
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN, open_house, settings_for
from stage.management import managing

from llm_proxy.events.recorders import facts_of

KEYS = ("sk-secret-first-0123456789abcdef", "sk-secret-second-0123456789abcd", "sk-secret-third-0123456789abcde")
METRICS_TOKEN = "metrics-token-that-is-long-enough-for-anyone"


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


async def test_no_secret_stays_in_answers_database_log_audit_or_metrics(tmp_path: Path, fake: str) -> None:
    settings = settings_for(
        tmp_path,
        LOG_FILE=str(tmp_path / "log"),
        LOG_LEVEL="debug",
        AUDIT_LOG_FILE=str(tmp_path / "audit"),
        METRICS_TOKEN=METRICS_TOKEN,
    )
    seen = []
    async with open_house(settings) as house, managing(house) as api, aiohttp.ClientSession() as client:

        async def ask(method: str, path: str, body: object = None) -> dict[str, str]:
            reply = await api.ask(method, path, body)
            seen.append(reply.text)
            return dict(reply.data or {})

        project = (await ask("POST", "/manage/projects", {"name": "demo", "api_key": KEYS[0], "api_base": fake}))["id"]
        await ask("PATCH", f"/manage/projects/{project}", {"api_key": KEYS[1]})
        path = f"/manage/projects/{project}/providers"
        provider = (await ask("POST", path, {"api_key": KEYS[2], "api_base": fake}))["id"]
        await ask("PATCH", f"{path}/{provider}", {"api_key": KEYS[0], "is_enabled": False})
        token = await api.token(project)
        # Secrets in places where they have no business.
        for method, wrong in (("GET", f"/manage/tokens/{token['token']}"), ("DELETE", f"/manage/projects/{KEYS[0]}")):
            await ask(method, wrong)
        await api.ask("GET", "/manage/version", headers={"User-Agent": f"Bearer {MANAGEMENT_TOKEN}"})
        await api.ask("GET", "/manage/version", token=METRICS_TOKEN)
        assert await call(client, house, token["token"]) == (200, None)
        await ask("PATCH", f"/manage/tokens/{token['id']}", {"name": "renamed"})
        await ask("DELETE", f"/manage/tokens/{token['id']}")
        assert (await call(client, house, token["token"]))[0] == 401
        for listed in ("/manage/projects", path, "/manage/tokens", "/manage/audit?limit=200"):
            await ask("GET", listed)
        seen += [(await api.ask("GET", "/metrics", token=METRICS_TOKEN)).text, *(str(facts_of(event)) for event in house.events)]
    kept = contents(tmp_path)
    assert {"house.db", "log", "audit"} <= set(kept)
    # An id that is not there is said back to who asked, and to nobody else.
    seen = [re.sub(r"There is no \w+ with the id '[^']*'", "", text) for text in seen]
    for secret in (*KEYS, token["token"], MANAGEMENT_TOKEN, METRICS_TOKEN, ENCRYPTION_KEY):
        for name, raw in {**kept, "answers": "\n".join(seen).encode()}.items():
            assert secret.encode() not in raw, (secret, name)
