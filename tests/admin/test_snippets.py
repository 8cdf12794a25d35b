"""The code beside a new token works exactly as it is shown."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from stage.house import PROVIDER_KEY, House
from stage.provider import ScriptedProvider, answer
from stage.secrets import used
from stage.visitor import Visitor

from llm_proxy.admin.snippets import model_for, proxy_address

SAID = {
    "openai": {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Good day"}}]},
    "anthropic": {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Good day"}]},
}
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
# Each is saved under such a name, then run so.
WAYS = {"curl": ("try.sh", "bash"), "Python": ("try.py", sys.executable), "Node": ("try.mjs", "node")}


@contextmanager
def saved(path: Path, code: str) -> Iterator[Path]:
    """A file of this code, which must not stay, for the token is in it."""
    path.write_text(code)
    yield path
    path.unlink()


async def run(program: str, path: Path) -> str:
    """What a file says when it is run; it must not fail."""
    process = await asyncio.create_subprocess_exec(
        program, path, cwd=path.parent, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, problems = await process.communicate()
    assert process.returncode == 0, problems.decode()
    return output.decode()


async def fetched(code: str) -> str:
    """What JavaScript that is nothing but one `fetch` would get, its parts read from the text, for machines without Node."""
    [call] = re.findall(r"await fetch\((.*?)\);\n", code, re.DOTALL)
    url, _, options = call.partition(", ")
    [said] = re.findall(r"JSON\.stringify\((.*)\),", options)
    [method], headers = re.findall(r'method: "(\w+)"', options), dict(re.findall(r'"([\w-]+)": "([^"]+)"', options))
    body = json.loads(re.sub(r"(\w+): ", r'"\1": ', said))
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, json.loads(url), headers=headers, data=json.dumps(body)) as reply,
    ):
        assert reply.status == 200, await reply.text()
        return await reply.text()


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_the_code_runs_as_it_is_shown(
    house: House, visitor: Visitor, provider: ScriptedProvider, dialect: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    written = json.dumps({"id": "1", "model": "m", **SAID[dialect]}).encode()
    provider.script = lambda exchange: exchange.send(answer(written))
    project = await house.project(provider.url, provider_type=dialect)
    page = await visitor.send(await visitor.get(f"/admin/new-token?project_id={project}"), "/admin/tokens")
    used(page.values["secret"])
    shown = {title: page.values[f"snippet-{place}"] for place, title in enumerate(WAYS, 1)}
    assert [title for title in WAYS if f">{title}</label>" in page.source] == list(WAYS)
    for title, (name, program) in WAYS.items():
        if shutil.which(program):
            with saved(tmp_path / name, shown[title]) as path:
                assert "Good day" in await run(program, path), title
        else:
            with capfd.disabled():
                print(f"\n{program} is MISSING here: the code for {title} was read, and its request made, but it was not run")
    assert "Good day" in await fetched(shown["Node"])
    for exchange in provider.exchanges:
        assert exchange.request_line == f"POST {PATHS[dialect]} HTTP/1.1".encode()
        assert page.values["secret"].encode() not in exchange.head and PROVIDER_KEY.encode() in exchange.head
        asked = json.loads(exchange.body)
        assert asked["messages"] == [{"role": "user", "content": "Hello"}] and asked["model"] == model_for((), dialect)
    assert len(house.events) == len(provider.exchanges) >= 3
    assert {event.outcome for event in house.events} == {"completed"}


@pytest.mark.parametrize(
    ("bound", "wildcard", "visited", "address"),
    [
        pytest.param("http://127.0.0.1:8080", True, "gateway.lan:8081", "http://gateway.lan:8080", id="the name in use"),
        pytest.param("http://127.0.0.1:8080", True, "[2001:db8::1]:8081", "http://[2001:db8::1]:8080", id="IPv6"),
        pytest.param("http://127.0.0.1:8080", False, "gateway.lan:8081", "http://127.0.0.1:8080", id="one address only"),
        pytest.param("http://127.0.0.1:8080", True, "", "http://127.0.0.1:8080", id="no Host"),
    ],
)
def test_the_address_is_one_at_which_the_proxy_can_be_reached(bound: str, wildcard: bool, visited: str, address: str) -> None:
    assert proxy_address(bound, wildcard, visited) == address


@pytest.mark.parametrize(
    ("allowed", "dialect", "model"),
    [
        ((), "openai", "gpt-4o-mini"),
        (("gpt-4*", "o3"), "openai", "o3"),
        (('a"b',), "x", "gpt-4o-mini"),
        ((), "anthropic", "claude-haiku-4-5"),
    ],
)
def test_the_model_is_one_the_token_may_use(allowed: tuple[str, ...], dialect: str, model: str) -> None:
    assert model_for(allowed, dialect) == model
