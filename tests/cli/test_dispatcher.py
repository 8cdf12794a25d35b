"""`llm-proxy dispatcher`: what it refuses, and the removal of a group."""

import asyncio

import pytest
from stage.redis import RedisServer
from stage.streams import KEY, open_stream

from llm_proxy.events.stream import EVENT

from .conftest import Cli


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        pytest.param(("--service", "file"), {}, "REDIS_URL is not set", id="no Redis"),
        pytest.param(("--service", "lunary"), {"REDIS_URL": "redis://127.0.0.1:1/0"}, "LUNARY_API_KEY is not set", id="no key"),
        pytest.param(("--service", "stdout"), {}, "file", id="no such sink"),
        pytest.param((), {}, "--service", id="no sink"),
    ],
)
def test_what_it_cannot_work_with_is_named(cli: Cli, arguments: tuple[str, ...], env: dict[str, str], said: str) -> None:
    done = cli("dispatcher", *arguments, **env)
    assert done.code == 2 and said in done.err


async def test_a_group_is_removed_and_what_it_lacks_is_asked_about(cli: Cli, redis_server: RedisServer) -> None:
    env = {"REDIS_URL": redis_server.uri, "REDIS_STREAM_KEY": KEY}
    async with open_stream(redis_server) as stream:
        epoch, _ = await stream.add("", [])
        await stream.join("file")
        await stream.add(epoch, [(EVENT, b"event")] * 3)
        await stream.fetch(stream.group_of("file"), "someone", 1)

        async def remove(*more: str, input: str = "") -> tuple[int, str]:
            done = await asyncio.to_thread(cli, "dispatcher", "--service", "file", "--remove", *more, input=input, **env)
            return done.code, done.out

        code, said = await remove(input="n\n")
        assert code == 1 and "3 events were not delivered to file yet" in said
        assert [group.name for group in (await stream.state()).groups] == ["llm-proxy:file"]
        assert await remove("--yes") == (0, "Removed the group llm-proxy:file; 3 events were not delivered.\n")
        assert (await stream.state()).groups == ()
        assert await remove() == (0, f"There is no group llm-proxy:file on {KEY}.\n")


def test_a_redis_that_does_not_answer_is_named(cli: Cli) -> None:
    done = cli("dispatcher", "--service", "file", "--remove", REDIS_URL="redis://127.0.0.1:1/0")
    assert done.code == 1 and "REDIS_URL: Redis does not answer" in done.err
