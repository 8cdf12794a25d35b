"""The command line, as tests use it."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
import pytest
from click.testing import CliRunner
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN, House

from llm_proxy.cli import command


@dataclass
class Done:
    """What a command did; `out` and `err` are what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        """What it wrote, decoded."""
        decoded: dict[str, object] = orjson.loads(self.out)
        return decoded

    @property
    def rows(self) -> list[list[str]]:
        """The rows of a table, without its head; cells are two spaces apart."""
        lines = self.out.splitlines()[1:]
        return [[cell.strip() for cell in line.split("  ") if cell] for line in lines]

    @property
    def fields(self) -> dict[str, str]:
        """The lines of one resource, by name."""
        return {line.split(None, 1)[0]: line.split(None, 1)[1] for line in self.out.splitlines() if line.count(" ") >= 1}


Cli = Callable[..., Done]
Manage = Callable[..., Awaitable[Done]]


@pytest.fixture
def cli() -> Cli:
    """Runs `llm-proxy` with these arguments in this process; keywords are settings in its environment."""

    def run(*arguments: str, input: str = "", **env: str) -> Done:
        result = CliRunner().invoke(command, arguments, input=input, env=env, prog_name="llm-proxy", catch_exceptions=False)
        return Done(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(params=["remote", "local"])
async def manage(request: pytest.FixtureRequest, house: House, cli: Cli) -> Manage:
    """Runs `llm-proxy manage`, once against a running server, once on its database."""
    path = house.context.settings.database_path
    where = ("--local", "--db", path) if request.param == "local" else ("--api-url", house.url)
    env = {"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN, "ENCRYPTION_KEY": ENCRYPTION_KEY, "ALLOW_PRIVATE_UPSTREAMS": "true"}

    async def run(*arguments: str, input: str = "") -> Done:
        return await asyncio.to_thread(cli, "manage", *where, *arguments, input=input, **env)

    return run


@pytest.fixture
def env_file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A .env file with good secrets in the working directory; sites listen on free loopback ports."""
    path = tmp_path / ".env"
    lines = ("LISTEN_ADDR=127.0.0.1:0", "ADMIN_UI_LISTEN_ADDR=127.0.0.1:0", "ALLOW_PRIVATE_UPSTREAMS=true")
    path.write_text(f"MANAGEMENT_TOKEN={MANAGEMENT_TOKEN}\nENCRYPTION_KEY={ENCRYPTION_KEY}\n" + "\n".join(lines) + "\n")
    return path
