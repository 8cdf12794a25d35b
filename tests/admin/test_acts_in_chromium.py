"""A person does every act of the admin site in a real browser, with scripts and without; a reload repeats none."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import playwright.async_api
import pytest
from playwright.async_api import Locator
from stage.chromium import MISSING, PATH, Watched, open_chromium
from stage.house import MANAGEMENT_TOKEN, TESTER, House, open_house, settings_for
from stage.logs import samples

from llm_proxy import audit
from llm_proxy.acts import master_keys, projects, providers, tokens
from llm_proxy.admin import ACTS
from llm_proxy.db.sql import Page
from llm_proxy.events.dead_letters import FILE, DeadLetters

# The one skip that the specification allows; scripts/test says it too, and .ci/run installs what is missing.
browsing = pytest.mark.skipif(not PATH.exists(), reason=MISSING)

# So many failures tell what is wrong; each takes seconds of waiting.
ENOUGH = 3
# What a house has for each step anew, by the names that steps write in braces.
Things = dict[str, str]


@asynccontextmanager
async def nothing_more(house: House, things: Things) -> AsyncIterator[None]:
    """The things of the step are enough."""
    yield


class Wrong(NamedTuple):
    """What is filled in at first, and refused beside its field."""

    label: str
    value: str
    problem: str


class Step(NamedTuple):
    """One act as a person does it.

    Attributes:
        act: its path in ACTS.
        page: where the person begins.
        button: what is pressed in the end.
        says: what the page then says, which the one before did not.
        audited: the action of its one audit event; empty where nothing is changed.
        fields: what is filled in, by label: a text, the text of an option, whether a box is ticked.
        wrong: one of the fields.
        on_the_way: links and buttons that lead from the page to the form.
        given: what must be so while it is done; it may name more things.
    """

    act: str
    page: str
    button: str
    says: str
    audited: str = ""
    fields: Mapping[str, str | bool] = {}
    wrong: Wrong | None = None
    on_the_way: tuple[str, ...] = ()
    given: Callable[[House, Things], AbstractAsyncContextManager[None]] = nothing_more


@asynccontextmanager
async def stopped(house: House, things: Things) -> AsyncIterator[None]:
    """The project is not active."""
    await projects.update(house.context, TESTER, things["project"], {"is_active": False})
    yield


@asynccontextmanager
async def out_of_use(house: House, things: Things) -> AsyncIterator[None]:
    """The provider is disabled."""
    await providers.update(house.context, TESTER, None, things["pool"], {"is_enabled": False})
    yield


@asynccontextmanager
async def refused_letter(house: House, things: Things) -> AsyncIterator[None]:
    """A sink refused an event, for a reason of its own."""
    letters = DeadLetters(Path(house.context.settings.event_dir) / FILE)
    await letters.add("file", f"refused {things['pool']}", event=samples(0)[0])
    yield


@asynccontextmanager
async def calling(house: House, things: Things) -> AsyncIterator[None]:
    """A stream runs, of which its client has the beginning."""
    body = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Go on."}]}
    headers = {"Authorization": f"Bearer {await house.token(things['project'])}", "X-Fake-Words": "5000", "X-Fake-Drip": "0.05"}
    path = "/v1/chat/completions"
    async with aiohttp.ClientSession(house.url) as client, client.post(path, json=body, headers=headers) as reply:
        await reply.content.readany()
        yield


MANY = Wrong("Quota of requests", "many", "whole number")
OFTEN = Wrong("Requests a second", "often", "whole number")
HEAVY = Wrong("Weight", "heavy", "whole number")
PROVIDER = {"Name": "Another", "API key": "sk-another-0123456789", "Weight": "2", "Model mapping": "gpt-4o = gpt-4o-mini"}
PROJECT, TOKEN, MASTER = "projects/{project}", "tokens/{token}", "master-keys/{master}"
OWN, POOL = "projects/{project}/keys/{own}", "providers/{pool}"
STEPS = (
    Step(
        "login",
        "login?next=/admin/health",
        "Log in",
        "Runs for",
        "admin.login",
        {"Management token": MANAGEMENT_TOKEN, "Stay logged in here for 30 days": True},
        Wrong("Management token", "guessed", "This is not the management token."),
    ),
    Step(
        "projects",
        "new-project",
        "Make the project",
        "was made. Next: make a token for it.",
        "project.create",
        {"Name": "Made", "API key": "sk-made-0123456789", "Requests a second": "5"},
        OFTEN,
    ),
    Step(
        "projects/{id}",
        PROJECT,
        "Save",
        "The project was changed.",
        "project.update",
        {"Name": "Renamed", "Requests a second": "5"},
        OFTEN,
    ),
    Step("projects/{id}/activate", PROJECT, "Activate", "The project is active.", "project.update", given=stopped),
    Step(
        "projects/{id}/deactivate",
        PROJECT,
        "Deactivate",
        "The project is not active any more. Its tokens are revoked.",
        "project.update",
        {"Also revoke all its tokens, for good": True},
        on_the_way=("Deactivate…",),
    ),
    Step(
        "projects/{id}/revoke",
        PROJECT,
        "Revoke all",
        "Tokens revoked: 1.",
        "project.revoke_tokens",
        on_the_way=("Revoke all tokens…",),
    ),
    Step(
        "projects/{id}/keys",
        PROJECT,
        "Add",
        "The provider Another was added.",
        "provider.create",
        PROVIDER,
        HEAVY,
        ("Add a key",),
    ),
    Step(
        "projects/{id}/keys/{provider_id}",
        OWN,
        "Save",
        "The provider was changed.",
        "provider.update",
        PROVIDER,
        HEAVY,
    ),
    Step("projects/{id}/keys/{provider_id}/state", OWN, "Disable", "The provider is disabled", "provider.update"),
    Step("projects/{id}/keys/{provider_id}/test", OWN, "Test now", "The provider answers, within", "provider.check"),
    Step(
        "projects/{id}/keys/{provider_id}/delete",
        OWN,
        "Delete",
        "The provider was removed.",
        "provider.delete",
        on_the_way=("Delete…",),
    ),
    Step(
        "tokens",
        "tokens",
        "Make the token",
        "Copy this token now",
        "token.create",
        {"Project": "{name}", "Name": "app", "Good for": "1 hour", "Quota of requests": "1000", "Models": "gpt-4o*"},
        MANY,
        ("New token",),
    ),
    Step(
        "tokens/{id}",
        TOKEN,
        "Save",
        "The token was changed.",
        "token.update",
        {"Name": "app", "Expires at": "", "Metadata": "team = search"},
        Wrong("Expires at", "tomorrow", "RFC 3339"),
    ),
    Step("tokens/{id}/revoke", TOKEN, "Revoke", "The token is revoked;", "token.revoke", on_the_way=("Revoke…",)),
    Step("tokens/{id}/reissue", TOKEN, "Revoke and reissue", "Copy this token now", "token.reissue", on_the_way=("Reissue…",)),
    Step(
        "master-keys",
        "master-keys",
        "Make the master key",
        "Copy this master key now",
        "master_key.create",
        {"Name": "nightly", "Models": "gpt-4o*", "Requests a second": "5"},
        OFTEN,
        ("New master key",),
    ),
    Step(
        "master-keys/{id}",
        MASTER,
        "Save",
        "The master key was changed.",
        "master_key.update",
        {"Name": "nightly", "Requests a second": "5", "Enabled": False},
        OFTEN,
    ),
    Step(
        "master-keys/{id}/rotate",
        MASTER,
        "Make a new key",
        "Copy this master key now",
        "master_key.rotate",
        {"The present key ends": "after 1 day"},
    ),
    Step(
        "master-keys/{id}/delete",
        MASTER,
        "Delete",
        "The master key was removed.",
        "master_key.delete",
        on_the_way=("Delete…",),
    ),
    Step(
        "providers",
        "providers",
        "Add",
        "The provider Another was added.",
        "provider.create",
        PROVIDER,
        HEAVY,
        ("Add a provider",),
    ),
    Step("reload", "providers", "Reload profiles and providers", "Read anew:", "config.reload"),
    Step("providers/{provider_id}", POOL, "Save", "The provider was changed.", "provider.update", PROVIDER, HEAVY),
    Step("providers/{provider_id}/state", POOL, "Drain (weight 0)", "The weight is 0:", "provider.update"),
    Step("providers/{provider_id}/state", POOL, "Enable", "The provider is enabled.", "provider.update", given=out_of_use),
    Step("providers/{provider_id}/test", POOL, "Test now", "The provider answers, within", "provider.check"),
    Step("providers/{provider_id}/test", "health", "Check {pool} now", "{pool}: The provider answers", "provider.check"),
    Step(
        "providers/{provider_id}/delete",
        POOL,
        "Delete",
        "The provider was removed.",
        "provider.delete",
        on_the_way=("Delete…",),
    ),
    Step(
        "cache/preview",
        "cache",
        "Purge by prefix…",
        "Purge the cache?",
        "",
        {"Paths that begin with": "/v1/models"},
        Wrong("Paths that begin with", "", "Say what to purge."),
    ),
    Step("cache/purge", "cache", "Purge", "Entries purged here:", "cache.purge", on_the_way=("Purge all…",)),
    Step(
        "chat",
        "chat",
        "Send",
        "You said: Are you there?",
        "token.create",
        {"Project": "{name}", "Model": "gpt-4o-mini", "Message": "Are you there?"},
    ),
    Step(
        "events/retry",
        "events",
        "Retry file: refused {pool}",
        "Delivered again: 1.",
        "events.retry",
        given=refused_letter,
    ),
    Step(
        "events/drop",
        "events",
        "Drop 1",
        "Dropped for good: 1.",
        "events.drop",
        on_the_way=("Drop… file: refused {pool}",),
        given=refused_letter,
    ),
    Step("requests/end", "requests", "End", "The call ends now;", "call.end", given=calling),
    # After it there is no session.
    Step("logout", "health", "Log out", "Management token", "admin.logout"),
)


def test_every_act_of_the_site_has_a_step() -> None:
    assert {step.act for step in STEPS} == {"login"} | {path for path, _ in ACTS}, "add a Step for each new act"


@browsing
@pytest.mark.timeout(180)
@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
async def test_every_act_works_and_a_reload_repeats_nothing(tmp_path: Path, fake: str, scripts: bool) -> None:
    async with open_house(settings_for(tmp_path, EVENT_SINKS="file")) as house, open_chromium() as browser:
        site = house.sites.admin
        assert site
        tab = Watched(await browser.new_page(java_script_enabled=scripts, timezone_id="Europe/Berlin", locale="en-GB"), site)
        tab.page.set_default_timeout(10_000)
        done, failed = Counter[tuple[str, str]](), dict[str, str]()
        for number, step in enumerate(STEPS):
            if len(failed) == ENOUGH:
                break
            try:
                things = await furnished(house, fake, number)
                async with step.given(house, things):
                    path = await carried_out(tab, step, things)
                    # The browser repeats the same request whether pages have scripts or not; each is a page more to load.
                    if scripts:
                        await reloaded(tab)
            except (AssertionError, playwright.async_api.Error) as error:
                failed[f"{step.act}, {step.button}"] = f"{error}\nat {tab.page.url}: {await tab.page.inner_text('main')}"
            else:
                done.update([(step.audited, path)] if step.audited else [])
        assert not failed, "\n\n".join(f"{name}: {text}" for name, text in failed.items())
        assert await acts_of_operators(house) == done
    # Browsers tell of every answer from 400 on: those to what was filled in wrongly, each once.
    refusals = [line for line in tab.complaints if re.search(r"the server responded with a status of 40[01] ", line)]
    assert len(refusals) == sum(step.wrong is not None for step in STEPS)
    assert [line for line in tab.complaints if line not in refusals] == []


async def furnished(house: House, base: str, number: int) -> Things:
    """What only this step uses: a project with a key and a token, a provider, a master key."""
    context, name, pool, master = house.context, f"Project {number}", f"pool-{number}", f"master-{number}"
    address = f"{base}/v1"
    project = await house.project(address, name=name)
    [own] = await providers.of_project(context, project)
    token, _ = await tokens.create(context, TESTER, {"project_id": project, "name": f"Token {number}"})
    await providers.create(
        context, TESTER, None, {"id": pool, "name": pool, "api_key": "sk-0123456789", "api_base": f"{base}/v1"}
    )
    await master_keys.create(context, TESTER, {"id": master, "name": f"Master key {number}"})
    return {"project": project, "name": name, "own": own.id, "token": token.id, "pool": pool, "master": master}


async def carried_out(tab: Watched, step: Step, things: Things) -> str:
    """Do one act by what the page shows, first with what is wrong; the path that the form was sent to."""
    await tab.open(step.page.format_map(things))
    for name in (name.format_map(things) for name in step.on_the_way):
        await tab.page.get_by_role("link", name=name, exact=True).or_(pressable(tab, name)).click()
    button = pressable(tab, step.button.format_map(things))
    form = tab.page.locator("form").filter(has=button)
    for label, value in step.fields.items():
        await fill_in(form, label, value.format_map(things) if isinstance(value, str) else value)
    if step.wrong:
        await refused(form, button, step.wrong)
        await fill_in(form, step.wrong.label, step.fields[step.wrong.label])
    path = await button.evaluate("button => new URL(button.form.getAttribute('action'), location).pathname")
    assert re.fullmatch("/admin/" + re.sub(r"\{\w+\}", "[^/]+", step.act), path), f"this form belongs to {path}"
    await button.click()
    await tab.page.locator("main", has_text=step.says.format_map(things)).wait_for()
    return str(path)


async def reloaded(tab: Watched) -> None:
    """What was told is told once."""
    # What it looks like is not of interest here, only what it says.
    reply = await tab.page.reload(wait_until="commit")
    assert reply and reply.status == 200
    again = await reply.text()
    assert not re.search(r'class="news \w+" role="status"|id="secret"', again), "told once more"


def pressable(tab: Watched, name: str) -> Locator:
    """The button with this name."""
    return tab.page.get_by_role("button", name=name, exact=True)


async def fill_in(form: Locator, label: str, value: str | bool) -> None:
    """Fill in one field, as its kind asks for."""
    field = form.get_by_label(label, exact=True)
    if isinstance(value, bool):
        await field.set_checked(value)
    elif await field.evaluate("field => field.tagName") == "SELECT":
        await field.select_option(label=value)
    else:
        await field.fill(value)


SAID = "form => [...form.elements].filter(field => field.type !== 'hidden' && field.type !== 'password')"
SAID += ".map(field => [field.id || field.name, field.type === 'checkbox' ? field.checked : field.value])"


async def refused(form: Locator, button: Locator, wrong: Wrong) -> None:
    """Send something wrong: it is refused beside its field, and nothing that was filled in is lost."""
    field = form.get_by_label(wrong.label, exact=True)
    await field.fill(wrong.value)
    filled = await form.evaluate(SAID)
    await button.click()
    problem = form.locator(".field", has=form.page.get_by_label(wrong.label, exact=True)).locator(".problem")
    await problem.wait_for()
    assert wrong.problem in await problem.inner_text()
    assert await field.get_attribute("aria-invalid") == "true"
    assert await problem.get_attribute("id") in (await field.get_attribute("aria-describedby") or "").split()
    assert await form.evaluate(SAID) == filled


async def acts_of_operators(house: House) -> Counter[tuple[str, str]]:
    """What the audit log says was done in the browser, with the paths that were asked for."""
    await house.context.audit.close()
    found = await audit.find(house.context.database, Page(500), {"outcome": "success"})
    return Counter((event.action, str(event.path)) for event in found if event.actor != TESTER.actor)
