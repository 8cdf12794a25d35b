"""Text that strangers and operators choose is shown as text, in every field of every page."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

from stage.house import TESTER, House
from stage.management import Management
from stage.visitor import Visitor

from llm_proxy import audit
from llm_proxy.acts import master_keys, projects, providers, tokens
from llm_proxy.audit import AuditEvent
from llm_proxy.events import Event
from llm_proxy.events.dead_letters import FILE, DeadLetters

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}</textarea></title>"
# Without a star, which makes a pattern of a model's name.
PLAIN = EVIL.replace("*", "+")

# Pages that have a script of their own.
SCRIPTS = {"requests": ["/admin/static/requests.js"]}


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
    call = Event(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, request_body=EVIL, reply_body=EVIL)
    call.project_id = call.project_name = call.token_id = call.token_name = call.model = call.model_used = EVIL
    call.provider = call.provider_type = call.endpoint = call.upstream_request_id = call.outcome = call.code = EVIL
    call.failed_attempts = [{"provider": EVIL, "status": None, "code": EVIL, "duration": 0.1}]
    context.bus.publish(call)
    letters = DeadLetters(Path(context.settings.event_dir) / FILE)
    for reason in (EVIL, "400"):
        await letters.add(EVIL, reason, event={"id": EVIL, "project_id": EVIL, "project_name": EVIL, "model": EVIL})
    [letter, _] = letters.letters()
    called = Event("r", None, None, None, "POST", "/", project_id=project.id, provider=own.id, model=EVIL, status=200)
    context.history.count(called)
    context.history.count(replace(called, project_id=EVIL, provider=EVIL))
    here = f"projects/{project.id}"
    for path in (
        "dashboard",
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
        "requests",
        f"requests/{call.id}",
        "events",
        f"events/{letter.id}",
        f"events/drop?{urlencode({'sink': EVIL, 'reason': EVIL})}",
    ):
        page = await visitor.get(f"/admin/{path}")
        assert page.status == 200, path
        assert "alert(1)" in page.text or path == "new-token", path
        assert not [tag for tag, given in page.tags if tag == "img" or any(name.startswith("on") for name in given)], path
        scripts = [given for tag, given in page.tags if tag == "script"]
        assert scripts[0] == {"src": "/admin/static/admin.js", "defer": ""}, path
        assert [given["src"] for given in scripts[1:]] == SCRIPTS.get(path, []), path
        assert "{{7*7}}" in page.text or path == "new-token", path
    page = await visitor.get(f"/admin/new-token?project_id={project.id}")
    assert page.values["project_id"] == EVIL and EVIL in [given["value"] for tag, given in page.tags if tag == "option"]
    page = await visitor.get(f"/admin/chat?project_id={project.id}")
    assert page.values["project_id"] == EVIL and "alert(1)" not in page.text
    assert page.form("/admin/chat").fields["model"] == PLAIN
    assert [given["src"] for tag, given in page.tags if tag == "script"] == ["/admin/static/admin.js", "/admin/static/chat.js"]
    assert not [tag for tag, _ in page.tags if tag == "img"]
    # What is written into forms and filters, and then shown again because it was wrong.
    for path, name in (
        ("projects", "search"),
        ("requests", "text"),
        ("requests", "model"),
        ("tokens", "search"),
        ("audit", "action"),
        ("audit", "start_time"),
    ):
        async with visitor.session.get(f"{visitor.url}/admin/{path}", params={name: EVIL}) as reply:
            assert "<script>alert" not in await reply.text()
    page = await visitor.send(await visitor.get("/admin/new-project"), "/admin/projects", name=EVIL, rate_limit=EVIL)
    assert page.values["rate_limit"] == EVIL and "<script>alert" not in page.source
