"""Reload: a good file in whole, a bad file not at all, in every instance."""

import asyncio
import pathlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from stage.calls import FIRST, call, streaming, until
from stage.house import TESTER, House, open_house, settings_for
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, chunk
from stage.secrets import used

from llm_proxy.acts import configuration, master_keys, providers
from llm_proxy.errors import ApiError
from llm_proxy.providers.profile_file import packaged_path

SOON = 3.0


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file of profiles of one's own."""
    path = tmp_path / "profiles.yaml"
    path.write_bytes(packaged_path().read_bytes())
    return path


@pytest.fixture
async def houses(tmp_path: pathlib.Path, file: pathlib.Path) -> AsyncIterator[tuple[House, House]]:
    """Two houses on one SQLite file and one file of profiles."""
    settings = settings_for(tmp_path, API_CONFIG_PATH=str(file))
    async with open_house(settings) as one, open_house(settings) as other:
        yield one, other


def edit(file: pathlib.Path, old: str = "", new: str = "", *, end: str = "") -> int:
    """Write the packaged file with something else in it; returns how many lines it has then."""
    text = packaged_path().read_text().replace(old, new) + end
    file.write_text(text)
    return len(text.splitlines())


NO_CHAT = "      - /v1/chat/completions\n"


async def token_of(house: House, provider: ScriptedProvider) -> str:
    """A master key, over a shared pool of one."""
    await providers.create(house.context, TESTER, None, {"api_key": used("sk-pool-0123456789"), "api_base": provider.url})
    _, secret = await master_keys.create(house.context, TESTER, {"name": "one"})
    return used(secret.reveal())


async def test_a_good_file_is_in_force_here_at_once_and_in_the_other_house_soon(
    houses: tuple[House, House], file: pathlib.Path, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    token = await token_of(here, provider)
    before = await configuration.shown(here.context)
    edit(file, NO_CHAT)
    assert await call(client, here, token) == (200, None), "nobody said so yet"
    done = await configuration.reload(here.context, TESTER)
    assert done["version"] == before["version"] + 1
    assert (done["providers_count"], done["credentials_count"]) == (1, 1)
    assert await call(client, here, token) == (404, "endpoint_not_found")
    async with asyncio.timeout(SOON):
        while await call(client, there, token) != (404, "endpoint_not_found"):
            pass


async def test_a_call_in_flight_keeps_the_profile_that_it_began_with(
    houses: tuple[House, House], file: pathlib.Path, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, _ = houses
    token, released = await token_of(here, provider), asyncio.Event()

    async def stream_until_released(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(FIRST))
        await released.wait()
        await exchange.send(chunk(b"data: [DONE]\n\n"), END)

    provider.script = stream_until_released
    async with streaming(here, token) as stream:
        edit(file, NO_CHAT)
        await configuration.reload(here.context, TESTER)
        released.set()
        async with asyncio.timeout(SOON):
            assert (await stream.reader.readuntil(END)).endswith(END), "its end is neat"
    assert await call(client, here, token) == (404, "endpoint_not_found")


async def test_a_bad_file_changes_nothing_and_is_told_with_its_line(
    houses: tuple[House, House], file: pathlib.Path, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, _ = houses
    token = await token_of(here, provider)
    before = (here.context.profiles, await configuration.shown(here.context))
    lines = edit(file, NO_CHAT, end="nonsense: 1\n")
    with pytest.raises(ApiError) as caught:
        await configuration.reload(here.context, TESTER)
    assert (caught.value.code, caught.value.status) == ("invalid_profiles", 409)
    assert f"{file}:{lines}:" in caught.value.message
    assert (here.context.profiles, await configuration.shown(here.context)) == before
    assert await call(client, here, token) == (200, None)


async def test_a_hangup_reads_the_file_anew_and_a_bad_one_is_logged(
    houses: tuple[House, House], file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = houses
    good = here.context.profiles
    edit(file, "default_api: openai", "default_api: nobody")
    here.context.on_hangup()
    await until(lambda: "the profiles stay as they were" in caplog.text)
    assert here.context.profiles is good
    edit(file, NO_CHAT)
    here.context.on_hangup()
    await until(lambda: not here.context.profiles.get("openai").admits("/v1/chat/completions"))
    assert there.context.profiles.get("openai").admits("/v1/chat/completions"), "the signal was for one process"


async def test_a_reload_notices_rows_that_were_edited_by_hand(
    houses: tuple[House, House], client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    token = await token_of(here, provider)
    for house in houses:
        assert await call(client, house, token) == (200, None)
    await here.context.database.execute("UPDATE tokens SET is_active = :off", {"off": False})
    assert await call(client, there, token) == (200, None)
    await configuration.reload(here.context, TESTER)
    assert await call(client, here, token) == (401, "token_inactive")
    async with asyncio.timeout(SOON):
        while await call(client, there, token) != (401, "token_inactive"):
            pass


async def test_a_provider_whose_profile_went_is_out_of_use_until_it_is_back(
    houses: tuple[House, House], file: pathlib.Path, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, _ = houses
    given = {"id": "g", "provider_type": "groq", "api_key": used("sk-pool-0123456789"), "api_base": provider.url}
    await providers.create(here.context, TESTER, None, given)
    _, secret = await master_keys.create(here.context, TESTER, {"name": "one"})
    for name, outcome, problem in (
        ("grok", (404, "model_not_found"), "There is no profile groq"),
        ("groq", (200, None), None),
    ):
        edit(file, "  groq:\n", f"  {name}:\n")
        await configuration.reload(here.context, TESTER)
        assert await call(client, here, secret.reveal()) == outcome
        [shown] = [providers.shown(here.context, one) for one in await providers.of_project(here.context, None)]
        assert (shown["problem"] or "").partition(";")[0] == (problem or "")
