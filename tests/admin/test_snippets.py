"""The code beside a new token works exactly as it is shown."""

import asyncio
import shutil
import sys

import pytest
from stage.house import House
from stage.secrets import used
from stage.visitor import Visitor

from llm_proxy.admin.snippets import model_for, proxy_address


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_the_code_runs_as_it_is_shown(house: House, visitor: Visitor, fake: str, dialect: str) -> None:
    project = await house.project(fake, provider_type=dialect)
    page = await visitor.send(await visitor.get(f"/admin/new-token?project_id={project}"), "/admin/tokens")
    used(page.values["secret"])
    runs = [["sh", "-c", page.values["snippet-1"]], [sys.executable, "-c", page.values["snippet-2"]]]
    if node := shutil.which("node"):
        runs.append([node, "--input-type=module", "-e", page.values["snippet-3"]])
    for run in runs:
        process = await asyncio.create_subprocess_exec(*run, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        output, problems = await process.communicate()
        assert process.returncode == 0, problems.decode()
        assert b"Hello" in output, output
    assert len(house.events) == len(runs)


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
        ((), "anthropic", "claude-3-5-haiku-latest"),
    ],
)
def test_the_model_is_one_the_token_may_use(allowed: tuple[str, ...], dialect: str, model: str) -> None:
    assert model_for(allowed, dialect) == model
