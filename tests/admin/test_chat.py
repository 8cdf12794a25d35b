"""The playground asks through the proxy, in the provider's dialect, and says plainly when no whole answer came."""

import asyncio
import html
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from stage.asking import until
from stage.house import TESTER, House, open_house, settings_for
from stage.management import Management
from stage.provider import END, STREAM_HEAD, Exchange, Script, ScriptedProvider, answer, chunk
from stage.scripts import holds, resets, sends
from stage.secrets import used
from stage.visitor import Page, Visitor, visiting

from llm_proxy.acts import projects
from llm_proxy.admin.chat import ADVICE, dialect_among
from llm_proxy.chats import ANTHROPIC, AZURE, OPENAI, Dialect
from llm_proxy.db.sql import Page as Rows
from llm_proxy.errors import RULES
from llm_proxy.operators import name_of
from llm_proxy.providers.profile_file import load_profiles, packaged_path
from llm_proxy.tokens import find as find_tokens

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}</textarea></pre>"


def events(*pieces: str, end: bytes = END) -> Script:
    """A whole answer of OpenAI's, in these pieces."""
    deltas = [json.dumps({"model": "m", "choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in pieces]
    usage = '{"choices":[],"usage":{"prompt_tokens":1200,"completion_tokens":7,"total_tokens":1207}}'
    return sends(STREAM_HEAD, *(chunk(f"data: {data}\n\n".encode()) for data in (*deltas, usage, "[DONE]")), end)


async def of_anthropic(exchange: Exchange) -> None:
    said: tuple[Mapping[str, Any], ...] = (
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 9, "output_tokens": 1}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello, "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "you."}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    )
    blocks = [chunk(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode()) for one in said]
    await exchange.send(STREAM_HEAD, *blocks, END)


def turns(page: Page) -> list[tuple[str, str]]:
    """Who said what, as the page shows it."""
    parts = page.source.partition('id="said"')[2].partition("</ol>")[0].split('<li class="said ')[1:]
    return [(part.partition('"')[0], html.unescape(part.partition('class="text">')[2].partition("</div>")[0])) for part in parts]


def alert(page: Page) -> str:
    """What the page says went wrong."""
    return " ".join(html.unescape(page.source.partition('role="alert">')[2].partition("</div>")[0]).split())


async def ask(visitor: Visitor, page: Page | None = None, question: str = "Hello", **fields: str) -> Page:
    """Send a message with the form."""
    return await visitor.send(page or await visitor.get("/admin/chat"), "/admin/chat", question=question, **fields)


@asynccontextmanager
async def streaming(visitor: Visitor, **fields: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to a message that is sent as the page's script does."""
    form = (await visitor.get("/admin/chat")).form("/admin/chat").fields | {"question": "Hello", **fields}
    sent = {"Accept": "text/event-stream", "Origin": visitor.url}
    async with visitor.session.post(f"{visitor.url}/admin/chat", data=form, headers=sent) as reply:
        yield reply


async def streamed(visitor: Visitor, **fields: str) -> tuple[int, list[dict[str, Any]] | dict[str, Any]]:
    """The whole of it: the messages that came, or the error."""
    async with streaming(visitor, **fields) as reply:
        text = await reply.text()
        if reply.content_type != "text/event-stream":
            return reply.status, json.loads(text)
        return reply.status, [json.loads(one.removeprefix("data: ")) for one in text.split("\n\n") if one.startswith("data: ")]


@pytest.fixture
async def project(house: House, provider: ScriptedProvider) -> str:
    """A project whose calls go to the scripted provider."""
    provider.script = events("Hel", "lo.")
    return await house.project(provider.url)


async def test_a_conversation_without_scripts(
    house: House, visitor: Visitor, provider: ScriptedProvider, project: str, api: Management
) -> None:
    page = await ask(visitor, project_id=project, model="gpt-4o", system="Be brief.")
    assert page.path == "/admin/chat" and turns(page) == [("user", "Hello"), ("assistant", "Hello.")]
    assert "1 200 in, 7 out" in page.text and "First text" in page.text and "Tokens a second" in page.text
    page = await ask(visitor, page, "More")
    assert turns(page) == [("user", "Hello"), ("assistant", "Hello."), ("user", "More"), ("assistant", "Hello.")]
    body = json.loads(provider.exchanges[1].body)
    assert (body["model"], body["stream"], body["stream_options"]) == ("gpt-4o", True, {"include_usage": True})
    assert [(one["role"], one["content"]) for one in body["messages"]] == [("system", "Be brief."), *turns(page)[:3]]
    assert page.form("/admin/chat").fields["system"] == "Be brief."
    # It was an application's call like any other, with a token of its own.
    [token] = await find_tokens(house.context.database, Rows())
    assert (token.name, token.project_id, token.max_requests) == ("playground", project, 20)
    assert token.expires_at and token.expires_at - token.created_at <= 600_000
    [operator] = house.context.operators.fingerprints
    [made] = await api.audit(action="token.create", project_id=project)
    assert (made["actor"], made["details"]["token"]["name"]) == (name_of(operator), "playground")
    await until(lambda: len(house.events) == 2)
    assert {event.token_id for event in house.events} == {token.id}


async def test_nothing_of_a_chat_is_on_the_disk(visitor: Visitor, provider: ScriptedProvider, project: str) -> None:
    """The fixture of every test looks through its folder for what was `used`."""
    asked, answered = used("what-nobody-is-to-find"), used("nor-this-by-any-means")
    provider.script = events(answered)
    page = await ask(visitor, None, asked, project_id=project, system=asked)
    assert turns(page) == [("user", asked), ("assistant", answered)]


async def test_a_reload_asks_nothing_again_and_no_other_session_sees_the_answer(
    house: House, visitor: Visitor, provider: ScriptedProvider, project: str
) -> None:
    form = (await visitor.get("/admin/chat")).form("/admin/chat").fields
    fields = {**form, "project_id": project, "question": "Hello"}
    sent = await visitor.post("/admin/chat", fields, follow=False)
    assert sent.status == 303 and sent.headers["Location"].startswith("/admin/chat?answer=")
    place = sent.headers["Location"].partition("#")[0]
    for _ in range(2):
        assert turns(await visitor.get(place))[1] == ("assistant", "Hello.")
    assert len(provider.exchanges) == 1
    async with visiting(house) as other:
        page = await other.get(place)
        assert turns(page) == [] and "not kept any more" in page.text


async def test_anthropics_dialect_is_that_of_anthropics_providers(
    house: House, visitor: Visitor, provider: ScriptedProvider
) -> None:
    provider.script = of_anthropic
    project = await house.project(provider.url, provider_type="anthropic")
    page = await ask(visitor, project_id=project, system="Be brief.", model="claude-haiku-4-5")
    assert turns(page) == [("user", "Hello"), ("assistant", "Hello, you.")] and "9 in, 4 out" in page.text
    [exchange] = provider.exchanges
    assert exchange.request_line == b"POST /v1/messages HTTP/1.1"
    body = json.loads(exchange.body)
    assert (body["system"], body["messages"]) == ("Be brief.", [{"role": "user", "content": "Hello"}])
    # The provider takes OpenAI's dialect too, when it is asked for.
    provider.script = events("Hello.")
    page = await ask(visitor, project_id=project, dialect="openai")
    assert turns(page)[-1] == ("assistant", "Hello.")
    assert provider.exchanges[1].request_line == b"POST /v1/chat/completions HTTP/1.1"


async def test_a_pasted_token_never_comes_back_and_serves_the_whole_conversation(
    house: House, visitor: Visitor, provider: ScriptedProvider, project: str
) -> None:
    token = await house.token(project)
    page = await ask(visitor, project_id="", token=token)
    more = await ask(visitor, page, "More")
    assert len(turns(more)) == 4 and len(provider.exchanges) == 2
    for one in (page, more):
        assert token not in one.source and "Authorization: Bearer (hidden)" in one.text
    assert [one.name for one in await find_tokens(house.context.database, Rows())] == [""], "none was made for this"
    wrong = await ask(visitor, await visitor.get("/admin/chat"), token=token + "x", model="")
    assert wrong.status == 400 and token not in wrong.source


async def test_the_raw_exchange_has_heads_and_bytes_but_no_credentials(
    house: House, visitor: Visitor, provider: ScriptedProvider, project: str
) -> None:
    page = await ask(visitor, project_id=project)
    [token] = await find_tokens(house.context.database, Rows())
    for shown in ("POST /v1/chat/completions HTTP/1.1", '"stream": true', "HTTP/1.1 200 OK", "X-Request-ID: ", "data: [DONE]"):
        assert shown in page.text or shown.lower() in page.text, shown
    assert token.id and "sk-lp-" not in page.source.replace(page.form("/admin/chat").fields["seal"], "")


async def test_a_script_gets_the_pieces_as_they_come(visitor: Visitor, provider: ScriptedProvider, project: str) -> None:
    released = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n'))
        await released.wait()
        await exchange.send(chunk(b'data: {"choices":[{"delta":{"content":"two"}}]}\n\ndata: [DONE]\n\n'), END)

    provider.script = script
    async with streaming(visitor, project_id=project) as reply:
        assert json.loads((await reply.content.readuntil(b"\n\n"))[6:]) == {"text": "one"}
        released.set()
        assert json.loads((await reply.content.readuntil(b"\n\n"))[6:]) == {"text": "two"}
        last = json.loads((await reply.content.readuntil(b"\n\n"))[6:])
    assert last["ok"] is True and "Raw exchange" in last["outcome"]


async def test_who_leaves_before_the_answer_begins_ends_the_call(
    visitor: Visitor, provider: ScriptedProvider, project: str
) -> None:
    provider.script = holds()
    asking = asyncio.ensure_future(streamed(visitor, project_id=project))
    exchange = await provider.next_exchange()
    asking.cancel()
    await asyncio.wait_for(exchange.closed.wait(), 2)


async def test_who_leaves_in_mid_stream_ends_the_call(visitor: Visitor, provider: ScriptedProvider, project: str) -> None:
    provider.script = holds(STREAM_HEAD, chunk(BROKEN))
    async with streaming(visitor, project_id=project) as reply:
        await reply.content.readuntil(b"\n\n")
        reply.close()
    await asyncio.wait_for(provider.exchanges[0].closed.wait(), 2)


BROKEN = b'data: {"choices":[{"delta":{"content":"Half an ans"}}]}\n\n'


TIRED = b'data: {"error":{"message":"I am tired.","code":"tired"}}\n\n'
BREAKS: Mapping[str, Script] = {
    "upstream_": resets(STREAM_HEAD, chunk(BROKEN)),
    "The stream ended without its end": sends(STREAM_HEAD, chunk(BROKEN), END),
    "this is no stream of a chat": sends(STREAM_HEAD, chunk(BROKEN), chunk(b"data: {nonsense\n\n"), END),
    "I am tired.": sends(STREAM_HEAD, chunk(BROKEN), chunk(TIRED), END),
}


async def test_a_broken_stream_is_shown_as_broken(visitor: Visitor, provider: ScriptedProvider, project: str) -> None:
    for says, provider.script in BREAKS.items():
        page = await ask(visitor, project_id=project)
        assert turns(page) == [("user", "Hello"), ("assistant broken", "Half an ans")]
        assert says in alert(page), alert(page)
        # It can be asked again as it stands, and is no part of the conversation.
        fields = page.form("/admin/chat").fields
        assert (fields["question"], fields["conversation"]) == ("Hello", "[]")
        status, messages = await streamed(visitor, project_id=project)
        assert status == 200 and isinstance(messages, list)
        assert messages[0] == {"text": "Half an ans"} and messages[-1]["ok"] is False
        assert says in html.unescape(messages[-1]["outcome"])


UNKNOWN = b'{"error":{"message":"No such model.","code":"model_not_found"}}'
NO_ANSWERS: Mapping[str, Script] = {
    "<code>model_not_found</code>": sends(answer(UNKNOWN, status=b"404 Not Found")),
    "Status 500.": sends(answer(b"<html>", b"text/html", b"500 Oops")),
    "with status 200, is no stream": sends(answer(b'{"choices":[]}')),
    "with status 200, is no stream;": sends(answer(bytes(100_000), b"application/octet-stream")),
    # Of a model that only thought: as a turn of the conversation, Anthropic would refuse it with all that follows.
    "holds no text": events(),
    "longer than the 128 KiB": events(*["я" * 35_000] * 3),
}


async def test_what_is_no_answer_is_told(visitor: Visitor, provider: ScriptedProvider, project: str) -> None:
    for says, provider.script in NO_ANSWERS.items():
        page = await ask(visitor, project_id=project)
        assert page.status == 200 and says in alert(page), alert(page)


async def test_refusals_of_the_proxy_come_with_advice(house: House, visitor: Visitor, provider: ScriptedProvider) -> None:
    empty = (await projects.create(house.context, TESTER, {"name": "empty"})).id
    away = await house.project("http://127.0.0.1:9")
    served = await house.project(provider.url)
    provider.script = events("Hello.")
    spent = await house.token(served, max_requests=1)
    assert turns(await ask(visitor, project_id="", token=spent))[-1] == ("assistant", "Hello.")
    limited = await house.token(served, allowed_models=["gpt-4o"])
    wanted: list[tuple[dict[str, str], str]] = [
        ({"project_id": empty}, "model_not_found"),
        ({"project_id": away}, "upstream_unavailable"),
        ({"project_id": "", "token": "sk-lp-nonsense"}, "invalid_token"),
        ({"project_id": "", "token": spent}, "request_limit_exhausted"),
        ({"project_id": "", "token": limited, "model": "o1"}, "model_not_allowed"),
    ]
    for fields, code in wanted:
        page = await ask(visitor, **{"model": "gpt-4o", **fields})
        assert f"<code>{code}</code>" in alert(page) and ADVICE[code][0] in alert(page), (code, alert(page))


def test_advice_is_for_codes_that_there_are() -> None:
    assert ADVICE.keys() <= RULES.keys()


WRONG: tuple[tuple[dict[str, str], str], ...] = (
    ({"question": " "}, "question"),
    ({"model": ""}, "model"),
    ({"model": "a\nb"}, "model"),
    ({"project_id": "", "token": ""}, "project_id"),
    ({"project_id": "gone"}, "project_id"),
    ({"token": "two words"}, "token"),
    ({"dialect": "klingon"}, "dialect"),
)


async def test_errors_stand_beside_their_field(visitor: Visitor, provider: ScriptedProvider, project: str) -> None:
    for fields, field in WRONG:
        given = {"project_id": project, "model": "gpt-4o", "question": "Hello", "system": "Be brief.", **fields}
        page = await ask(visitor, **given)
        assert page.status == 400 and list(page.problems) == [field]
        assert page.form("/admin/chat").fields["system"] == "Be brief."
        status, error = await streamed(visitor, **given)
        assert status == 400 and isinstance(error, dict) and error["error"]["param"] == field
    assert provider.exchanges == []


async def test_a_conversation_that_is_none_is_refused(visitor: Visitor, project: str) -> None:
    for conversation in ("{", "[1]", "5", '[{"role":"system","content":"x"}]', '[{"role":"user","content":1}]'):
        page = await ask(visitor, project_id=project, conversation=conversation)
        assert page.status == 400 and "Begin a new one" in page.text


async def test_text_of_models_and_people_is_shown_as_text(visitor: Visitor, provider: ScriptedProvider, project: str) -> None:
    provider.script = events(EVIL)
    page = await ask(visitor, None, EVIL, project_id=project, model=EVIL[:60], system=EVIL)
    page = await ask(visitor, page, EVIL)
    assert turns(page) == [("user", EVIL), ("assistant", EVIL)] * 2
    provider.script = sends(answer(json.dumps({"error": {"message": EVIL, "code": EVIL}}).encode(), status=b"400 Bad Request"))
    failed = await ask(visitor, page, EVIL)
    _, messages = await streamed(visitor, project_id=project, question=EVIL)
    assert isinstance(messages, list)
    for source in (page.source, failed.source, messages[-1]["outcome"]):
        assert "<script>alert" not in source and "<img" not in source
    for one in (page, failed):
        assert [tag for tag, _ in one.tags if tag == "script"] == ["script", "script"]


async def test_another_sites_form_and_a_stranger_ask_nothing(
    visitor: Visitor, stranger: Visitor, provider: ScriptedProvider, project: str
) -> None:
    form = (await visitor.get("/admin/chat")).form("/admin/chat").fields | {"project_id": project, "question": "Hello"}
    assert (await visitor.post("/admin/chat", form, origin="https://evil.example")).status == 403
    assert (await visitor.post("/admin/chat", {**form, "seal": "x"})).status == 403
    assert (await stranger.post("/admin/chat", form, follow=False)).headers["Location"].startswith("/admin/login")
    assert provider.exchanges == []


async def test_a_token_that_was_revoked_is_replaced_by_the_next_question(
    house: House, visitor: Visitor, provider: ScriptedProvider, project: str, api: Management
) -> None:
    await ask(visitor, project_id=project)
    await projects.revoke_tokens(house.context, TESTER, project, {})
    assert "<code>token_inactive</code>" in alert(await ask(visitor, project_id=project))
    assert turns(await ask(visitor, project_id=project))[-1] == ("assistant", "Hello.")


@pytest.mark.parametrize("address", [":0", "[::]:0"])
async def test_the_proxy_is_reached_wherever_it_listens(tmp_path: Any, provider: ScriptedProvider, address: str) -> None:
    provider.script = events("Hello.")
    async with open_house(settings_for(tmp_path, LISTEN_ADDR=address)) as house, visiting(house) as visitor:
        project = await house.project(provider.url)
        assert turns(await ask(visitor, project_id=project))[-1] == ("assistant", "Hello.")


async def test_the_proxy_is_asked_by_a_name_that_it_answers(tmp_path: Any, provider: ScriptedProvider) -> None:
    provider.script = events("Hello.")
    settings = settings_for(tmp_path, ALLOWED_HOSTS="localhost", ADMIN_UI_LISTEN_ADDR="localhost:0")
    async with open_house(settings) as house, visiting(house) as visitor:
        project = await house.project(provider.url)
        assert turns(await ask(visitor, project_id=project))[-1] == ("assistant", "Hello.")


async def test_models_are_offered_that_are_known_of_the_project(house: House, visitor: Visitor, api: Management) -> None:
    key = {"api_key": "sk-0123456789abcdef", "provider_type": "openai", "model_mapping": {"fast": "x", "good*": "y"}}
    created = await api.done("POST", "/manage/projects", {"name": "mapped"})
    await api.done("POST", f"/manage/projects/{created['id']}/providers", key)
    page = await visitor.get(f"/admin/chat?project_id={created['id']}")
    assert [given["value"] for tag, given in page.tags if tag == "option"][-5:].count("fast") == 1
    assert page.form("/admin/chat").fields["model"] == "fast"


@pytest.mark.parametrize(
    ("types", "dialect"),
    [
        pytest.param([], OPENAI, id="nobody"),
        pytest.param(["openai"], OPENAI, id="openai"),
        pytest.param(["anthropic"], ANTHROPIC, id="anthropic"),
        pytest.param(["anthropic", "mistral"], OPENAI, id="several"),
        pytest.param(["azure"], AZURE, id="azure deployments"),
        pytest.param(["azure at /openai/v1"], OPENAI, id="azure v1"),
        pytest.param(["openrouter"], OPENAI, id="one that speaks both"),
    ],
)
def test_the_dialect_follows_from_who_serves_the_model(types: list[str], dialect: Dialect) -> None:
    profiles = load_profiles(packaged_path()).apis
    given = [one.partition(" at ") for one in types]
    assert dialect_among((profiles[name], f"https://a{path}" if path else "") for name, _, path in given) == dialect
