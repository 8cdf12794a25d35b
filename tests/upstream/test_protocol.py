"""What the connections to providers are guarded against."""

import asyncio
from pathlib import Path

import pytest
from stage.asking import ask, call, event_of
from stage.house import House, settings_for
from stage.profiles import shipped
from stage.provider import STREAM_HEAD, ScriptedProvider, answer, chunk
from stage.scripts import in_turn, resets, sends

from llm_proxy.errors import UpstreamInvalid
from llm_proxy.upstream import Request, open_upstream


@pytest.mark.parametrize(
    "framing", [b"", b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["close", "length", "chunked"]
)
async def test_a_reset_never_looks_like_the_end_of_a_body(house: House, provider: ScriptedProvider, framing: bytes) -> None:
    token = await house.token_for(provider.url)
    body = chunk(b"hello") if b"chunked" in framing else b"hello"
    provider.script = resets(b"HTTP/1.1 200 OK\r\n%b\r\n" % framing, body)
    reply = await ask(house.url, call(token))
    assert reply is not None and not reply.whole
    assert (await event_of(house)).outcome == "upstream_incomplete"


@pytest.mark.parametrize("broken_by", [b"zz\r\n", None], ids=["bad-chunk", "fin"])
async def test_what_came_before_a_break_is_passed_on(tmp_path: Path, provider: ScriptedProvider, broken_by: bytes | None) -> None:
    """Also to a client so slow that the provider has gone before it took the last bytes."""
    profile = shipped().apis["openai"]
    provider.script = sends(STREAM_HEAD, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n") + (broken_by or b""), close=True)
    async with open_upstream(settings_for(tmp_path)) as upstream:
        request = Request("GET", provider.url, [], None, None, profile, profile.timeouts, trusted=True, on_sent=lambda: None)
        found = await upstream.open(request)
        await asyncio.sleep(0.1)
        assert await found.chunk() == b"data: 1\n\ndata: 2\n\n"
        with pytest.raises(UpstreamInvalid, match="broke off"):
            await found.chunk()
        found.abort()


async def test_two_answers_at_once_are_one_answer_and_no_connection(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = in_turn(sends(answer(b'"first"') + answer(b'"second"')), sends(answer(b'"third"')))
    assert [(await ask(house.url, call(token))).body for _ in range(2)] == [b'"first"', b'"third"']  # type: ignore[union-attr]
    assert provider.connections == 2
