"""`llm-proxy quickstart`: the first minute."""

import asyncio
import dataclasses
import pathlib
from contextlib import AsyncExitStack

import click
import uvloop

from llm_proxy import fake_provider, projects, tokens
from llm_proxy.acts import projects as project_acts
from llm_proxy.acts import tokens as token_acts
from llm_proxy.audit import Who
from llm_proxy.cli import env_file, options
from llm_proxy.clock import now_ms, to_rfc3339
from llm_proxy.context import Context, open_context, read_profiles
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError
from llm_proxy.ids import new_id
from llm_proxy.projects import Project
from llm_proxy.providers import Provider
from llm_proxy.providers.profiles import Profiles
from llm_proxy.secret import Secret
from llm_proxy.server import Sites, serve
from llm_proxy.settings import Settings, check_serving

DEMO = "demo"
WHO = Who("quickstart")
# The token is stored hashed, so a second start could not show it again without this file.
TOKEN_FILE = pathlib.Path("data/quickstart-token")


@click.command()
@options.addr
@options.admin_addr
@options.database
@click.option(
    "--openai-api-key", envvar="OPENAI_API_KEY", metavar="KEY", help="Call OpenAI with this key.  [default: OPENAI_API_KEY]"
)
@options.env_file
def command(openai_api_key: str | None) -> None:
    """Make a demo in this folder and serve it: settings, database, project, token, and a curl line that works.

    With OPENAI_API_KEY set, the demo calls OpenAI; without, a fake provider inside this process answers.
    Started again, it keeps what it made.

    \b
    Examples:
      llm-proxy quickstart
      OPENAI_API_KEY=sk-... llm-proxy quickstart --addr 127.0.0.1:9000
    """
    settings = _settings(pathlib.Path(options.said().setdefault("env", ".env")))
    check_serving(settings)
    uvloop.run(_run(settings, openai_api_key))


def _settings(path: pathlib.Path) -> Settings:
    """The settings, with what is missing for a first start written to the file."""
    if not path.exists():
        env_file.write(path, {**env_file.fresh_secrets(), "LISTEN_ADDR": "127.0.0.1:8080"})
        click.echo(f"Wrote {path} with fresh secrets (mode 0600).")
    settings = options.settings()
    missing = {name: value for name, value in env_file.fresh_secrets().items() if name not in settings.sources}
    if not missing:
        return settings
    # The file is another program's, or older than encryption: what it says stays.
    env_file.extend(path, missing)
    click.echo(f"Added {' and '.join(missing)} to {path} (mode 0600).")
    return options.settings()


async def _run(settings: Settings, key: str | None) -> None:
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(fake_provider.running())
        pool = [_fake_provider()]
        opened = open_context(settings, lambda: _with_fake(read_profiles(settings), fake), pool)
        context = await stack.enter_async_context(opened)
        project = await _demo_project(context, key)
        token, expiry = await _demo_token(context, project)
        own = await context.providers.of_project(project.id) != pool
        started: asyncio.Future[Sites] = asyncio.get_running_loop().create_future()
        started.add_done_callback(lambda done: None if done.cancelled() else _greet(done.result(), token, expiry, own))
        await serve(context, started)


def _with_fake(profiles: Profiles, base_url: str) -> Profiles:
    """The profiles and one more, which is in memory only: nothing of the fake provider is ever stored."""
    openai, anthropic = profiles.get("openai"), profiles.get("anthropic")
    endpoints = tuple(dict.fromkeys((*openai.allowed_endpoints, *anthropic.allowed_endpoints)))
    fake = dataclasses.replace(openai, name="fake", base_url=base_url, allowed_endpoints=endpoints)
    return dataclasses.replace(profiles, apis={**profiles.apis, "fake": fake})


def _fake_provider() -> Provider:
    now = now_ms()
    return Provider(
        id="fake",
        project_id=None,
        name="fake provider of the quickstart",
        provider_type="fake",
        api_base="",
        api_key=Secret(f"fake-{new_id()}"),
        weight=1,
        provider_params={},
        is_enabled=True,
        created_at=now,
        updated_at=now,
    )


async def _demo_project(context: Context, key: str | None) -> Project:
    """The demo project, made when it is missing; it gets the OpenAI key once there is one."""
    found = await projects.find(context.database, Page(1), name=DEMO)
    if not found:
        given = {"name": DEMO, "api_key": key, "provider_type": "openai"} if key else {"name": DEMO}
        return await project_acts.create(context, WHO, given)
    wanted: dict[str, object] = {} if found[0].is_active else {"is_active": True}
    if key and all(provider.id == "fake" for provider in await context.providers.of_project(found[0].id)):
        wanted["api_key"] = key
    return await project_acts.update(context, WHO, found[0].id, wanted) if wanted else found[0]


async def _demo_token(context: Context, project: Project) -> tuple[str, int | None]:
    """The token of an earlier start while it is good, else a fresh one; with the time it expires."""
    kept = kept_token()
    if kept:
        try:
            found = await context.tokens.authenticate(kept)
            if found.project_id == project.id:
                return kept, found.expires_at
        except ApiError:
            click.echo("The demo token of an earlier start is no good any more; making another.")
    made, secret = await token_acts.create(context, WHO, {"project_id": project.id, "name": DEMO})
    env_file.write_private(TOKEN_FILE, secret.reveal() + "\n")
    return secret.reveal(), made.expires_at


def kept_token() -> str | None:
    """The token that a quickstart in this folder keeps, if there is one."""
    try:
        text = TOKEN_FILE.read_text().strip()
    except OSError:
        return None
    return text if tokens.well_formed(text) else None


def _greet(sites: Sites, token: str, expiry: int | None, own_key: bool) -> None:
    where = "the project's own key" if own_key else "the built-in fake provider; set OPENAI_API_KEY to call OpenAI"
    until = f"good until {to_rfc3339(expiry)}" if expiry else "it does not expire"
    click.secho("\nLLM Proxy is running.", bold=True, nl=False)
    click.echo(
        f"""  Calls go to {where}.

  Proxy       {sites.proxy}
  Admin site  {sites.admin or "not served"}
              (log in with the MANAGEMENT_TOKEN in .env)
  Token       {token}
              ({until})

Paste this into another terminal:

curl -N {sites.proxy}/v1/chat/completions \\
  -H "Authorization: Bearer {token}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "gpt-4o-mini", "stream": true, "messages": [{{"role": "user", "content": "Say hello."}}]}}'

Ctrl-C stops it; what it made stays in .env and data/.
"""
    )
