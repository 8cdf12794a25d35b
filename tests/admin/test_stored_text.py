"""Text that strangers and operators choose is shown as text, in every field of every page."""

from pathlib import Path
from urllib.parse import urlencode

from stage.house import TESTER, House
from stage.management import Management
from stage.visitor import Visitor

from llm_proxy import audit
from llm_proxy.acts import master_keys, projects, providers, tokens
from llm_proxy.audit import AuditEvent
from llm_proxy.events.dead_letters import FILE, DeadLetters

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}</textarea></title>"
# Without a star, which makes a pattern of a model's name.
PLAIN = EVIL.replace("*", "+")


async def test_stored_scripts_are_shown_as_text(house: House, visitor: Visitor, api: Management) -> None:
    context = house.context
    project = await projects.create(context, TESTER, {"name": EVIL})
    key = {
        "api_key": "sk-0123456789abcdef",
        "name": EVIL,
        "model_mapping": {EVIL: "x", PLAIN: "x"},
        "provider_params": {EVIL: EVIL},
    }
    own = await providers.create(context, TESTER, project.id, key)
    shared = await providers.create(context, TESTER, None, {**key, "id": "shared"})
    fields = {"name": EVIL, "allowed_models": [EVIL]}
    token, _ = await tokens.create(context, TESTER, {**fields, "project_id": project.id, "metadata": {EVIL: EVIL}})
    await master_keys.create(context, TESTER, {**fields, "id": "mk"})
    texts = (
        "actor",
        "reason",
        "client_ip",
        "method",
        "path",
        "user_agent",
        "request_id",
        "correlation_id",
        "project_id",
        "token_id",
    )
    event = AuditEvent(action=EVIL, **dict.fromkeys(texts, EVIL), details={EVIL: [EVIL]})
    await audit.insert(context.database, [event])
    letters = DeadLetters(Path(context.settings.event_dir) / FILE)
    for reason in (EVIL, "400"):
        await letters.add(EVIL, reason, event={"id": EVIL, "project_id": EVIL, "project_name": EVIL, "model": EVIL})
    [letter, _] = letters.letters()
    here = f"projects/{project.id}"
    for path in (
        "projects",
        here,
        f"{here}/deactivate",
        f"{here}/revoke",
        f"{here}/new-key",
        f"{here}/keys/{own.id}",
        f"{here}/keys/{own.id}/delete",
        "tokens",
        "new-token",
        f"tokens/{token.id}",
        f"tokens/{token.id}/revoke",
        f"tokens/{token.id}/reissue",
        "providers",
        f"providers/{shared.id}",
        f"providers/{shared.id}/delete",
        "master-keys",
        "master-keys/mk",
        "master-keys/mk/delete",
        "audit",
        f"audit/{event.id}",
        "health",
        "events",
        f"events/{letter.id}",
        f"events/drop?{urlencode({'sink': EVIL, 'reason': EVIL})}",
    ):
        page = await visitor.get(f"/admin/{path}")
        assert page.status == 200, path
        assert "alert(1)" in page.text, path
        assert not [tag for tag, given in page.tags if tag == "img" or any(name.startswith("on") for name in given)], path
        assert [given for tag, given in page.tags if tag == "script"] == [{"src": "/admin/static/admin.js", "defer": ""}], path
        assert "{{7*7}}" in page.text, path
    page = await visitor.get(f"/admin/chat?project_id={project.id}")
    assert page.text.count("alert(1)") == 1 and page.form("/admin/chat").fields["model"] == PLAIN
    assert [given["src"] for tag, given in page.tags if tag == "script"] == ["/admin/static/admin.js", "/admin/static/chat.js"]
    assert not [tag for tag, _ in page.tags if tag == "img"]
    # What is written into forms and filters, and then shown again because it was wrong.
    for path, name in (("projects", "search"), ("tokens", "search"), ("audit", "action"), ("audit", "start_time")):
        async with visitor.session.get(f"{visitor.url}/admin/{path}", params={name: EVIL}) as reply:
            assert "<script>alert" not in await reply.text()
    page = await visitor.send(await visitor.get("/admin/new-project"), "/admin/projects", name=EVIL, rate_limit=EVIL)
    assert page.values["rate_limit"] == EVIL and "<script>alert" not in page.source
