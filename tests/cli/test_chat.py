"""`llm-proxy chat`: answers as they stream, and every way in which they do not come."""

import asyncio
import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import termios
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from stage.house import House
from stage.postgres import free_port
from stage.processes import environment
from stage.provider import STREAM_HEAD, Exchange, ScriptedProvider, answer, chunk

from llm_proxy import fake_provider
from llm_proxy.fake_provider import Faults

from .conftest import Cli, Done

Chat = Callable[..., Awaitable[Done]]


@pytest.fixture
async def chat(house: House, fake: str, cli: Cli) -> Chat:
    """Runs `llm-proxy chat` through a proxy whose calls go to the fake provider, or elsewhere."""

    async def run(*arguments: str, input: str = "", api_base: str = fake, **env: str) -> Done:
        token = await house.token_for(api_base)
        return await asyncio.to_thread(cli, "chat", "--url", house.url, "--token", token, *arguments, input=input, **env)

    return run


async def test_a_question_on_the_command_line_is_answered(chat: Chat) -> None:
    done = await chat("Hello", "there,", "proxy")
    assert (done.code, done.out, done.err) == (0, "Hello! You said: Hello there, proxy\n", "")


async def test_lines_of_standard_input_are_questions_until_an_empty_one(chat: Chat) -> None:
    done = await chat(input="one\n  two \n\nnever asked\n")
    assert (done.code, done.out) == (0, "Hello! You said: one\nHello! You said: two\n")
    assert (await chat(input="one")).out == "Hello! You said: one\n", "the end of the input ends it too"
    assert (await chat()).out == ""


async def test_a_model_knows_what_was_said_before(chat: Chat, provider: ScriptedProvider) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(b'data: {"choices":[{"delta":{"content":"yes"}}]}\n\ndata: [DONE]\n\n', b"text/event-stream"))

    provider.script = script
    await chat("--system", "Be brief.", "--model", "o1", input="one\ntwo\n", api_base=provider.url)
    bodies: list[dict[str, Any]] = [json.loads(exchange.body) for exchange in provider.exchanges]
    assert [body["model"] for body in bodies] == ["o1", "o1"]
    assert [(message["role"], message["content"]) for message in bodies[1]["messages"]] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "yes"),
        ("user", "two"),
    ]


async def test_an_answer_cannot_steer_the_terminal(chat: Chat, provider: ScriptedProvider) -> None:
    text = json.dumps({"choices": [{"delta": {"content": "a\x1b[31mb\nc"}}]}).encode()

    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(b"data: " + text + b"\n\n", b"text/event-stream"))

    provider.script = script
    assert (await chat("hi", api_base=provider.url)).out == "a�[31mb\nc\n"


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        pytest.param(Faults(status=503), "The fake provider was asked to fail with status 503.", id="refused"),
        pytest.param(Faults(cut=3), "The answer broke off", id="cut"),
        pytest.param(Faults(bad_json=True), "The answer broke off", id="no JSON"),
    ],
)
async def test_an_answer_that_does_not_come_exits_1_with_the_reason(chat: Chat, faults: Faults, says: str) -> None:
    async with fake_provider.running(faults=faults) as url:
        done = await chat("hi", api_base=url)
    assert done.code == 1
    assert says in done.err and done.err.count("Error: ") == 1


@pytest.mark.parametrize("event", [b"[]", b"{}", b"null", b'{"choices": [{"delta": 1}]}', b'{"choices": 1}'])
async def test_a_stream_of_another_kind_is_told(chat: Chat, provider: ScriptedProvider, event: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(b"data: " + event + b"\n\n", b"text/event-stream"))

    provider.script = script
    done = await chat("hi", api_base=provider.url)
    assert done.err == "Error: The answer broke off: this is no stream of a chat.\n"


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A shell has what it runs in the background ignore the key, and so would the command.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def on_a_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command on a terminal of its own, with our end of that."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_proxy", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="dumb"),
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


async def test_on_a_terminal_it_prompts_and_ctrl_c_ends_it(house: House, fake: str) -> None:
    with on_a_terminal("chat", "--url", house.url, "--token", await house.token_for(fake)) as (process, ours):
        seen = ""

        async def until(text: str) -> None:
            nonlocal seen
            while text not in seen:
                seen += (await asyncio.to_thread(os.read, ours, 4096)).decode()

        async with asyncio.timeout(60):
            await until("> ")
            os.write(ours, b"Hello\n")
            await until("You said: Hello\r\n> ")
            # The prompt is shown a moment before the terminal takes keys for it.
            await asyncio.sleep(0.5)
            while process.poll() is None:
                # A key that comes while the terminal changes its mode is lost; a person would press it again, yet not at once:
                # one that comes while Python ends kills it.
                os.write(ours, b"\x03")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.wait, 5)
            assert process.returncode == 0


async def test_an_error_within_the_stream_is_told(chat: Chat, provider: ScriptedProvider) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(b'data: {"error":{"message":"I am tired."}}\n\n'))
        exchange.reset()

    provider.script = script
    assert "The answer broke off: I am tired." in (await chat("hi", api_base=provider.url)).err


async def test_an_answer_without_a_message_is_told_by_its_status(cli: Cli, provider: ScriptedProvider) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(b"<html>", b"text/html", b"502 Bad Gateway"))

    provider.script = script
    done = await asyncio.to_thread(cli, "chat", "--url", provider.url, "--token", "x", "hi")
    assert (done.code, done.err) == (1, f"Error: {provider.url} answered with status 502.\n")


def test_a_proxy_that_does_not_run_is_said_with_its_address(cli: Cli) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = cli("chat", "--url", url, "--token", "x", "hi")
    assert (done.code, done.err) == (
        1,
        f"Error: No answer from the proxy at {url}: Connection refused. --url says where it is.\n",
    )


def test_the_proxy_is_where_the_settings_say(cli: Cli) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert f"http://{address}: " in cli("chat", "--token", "x", "hi", LISTEN_ADDR=address).err


async def test_a_wrong_token_is_refused_in_the_proxys_words(house: House, cli: Cli) -> None:
    done = await asyncio.to_thread(cli, "chat", "--url", house.url, "--token", "wrong", "hi")
    assert done.code == 1
    assert "The token is missing, malformed or unknown" in done.err


async def test_the_token_may_come_from_the_environment_or_the_quickstart(
    house: House, fake: str, cli: Cli, tmp_path: pathlib.Path
) -> None:
    token = await house.token_for(fake)
    done = await asyncio.to_thread(cli, "chat", "--url", house.url, "hi", OPENAI_API_KEY=token)
    assert done.out == "Hello! You said: hi\n"
    kept = tmp_path / "data" / "quickstart-token"
    kept.parent.mkdir()
    kept.write_text(f"{token}\n")
    done = await asyncio.to_thread(cli, "chat", "--url", house.url, "hi", OPENAI_API_KEY="sk-proj-of-openai-itself")
    assert done.out == "Hello! You said: hi\n"
    kept.unlink()


@pytest.mark.parametrize("env", [{}, {"OPENAI_API_KEY": "sk-proj-of-openai-itself"}], ids=["none", "a provider's own"])
def test_without_a_token_nothing_is_asked(cli: Cli, env: dict[str, str]) -> None:
    done = cli("chat", "--url", f"http://127.0.0.1:{free_port()}", "hi", **env)
    assert done.code == 2
    assert "--token" in done.err and "llm-proxy manage token create" in done.err
