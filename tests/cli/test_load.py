"""The load of `llm-proxy benchmark`: every request is timed, and each that fails is told."""

import asyncio

import pytest
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, answer, chunk
from stage.scripts import holds, in_turn, sends

from llm_proxy.cli.load import Load, Timed

OK = answer(b'{"ok": true}')


def load(url: str, count: int = 1, concurrency: int = 1, seconds: float = 10.0) -> Load:
    return Load(url, "/v1/x", {"A": "b"}, b"{}", count, concurrency, seconds, lambda: None)


async def test_moments_come_in_their_order_and_pieces_are_counted(provider: ScriptedProvider) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        await exchange.send(chunk(b"data: 1\n\n"))
        await exchange.send(chunk(b"data: 2\n\n"), END)

    provider.script = script
    [timed], _ = await load(provider.url).run()
    assert timed.is_good and timed.status == 200
    assert 0 < timed.began < timed.head <= timed.first <= timed.ended
    assert (timed.pieces, timed.size) == (2, 18)


async def test_what_is_asked_is_what_was_said_on_as_few_connections_as_can_be(provider: ScriptedProvider) -> None:
    found, _ = await load(f"{provider.url}/under/here", count=7, concurrency=2).run()
    assert len(found) == 7 and all(timed.is_good for timed in found)
    assert {exchange.request_line for exchange in provider.exchanges} == {b"POST /under/here/v1/x HTTP/1.1"}
    assert {exchange.body for exchange in provider.exchanges} == {b"{}"}
    assert provider.connections <= 3, "the first is asked alone"
    assert provider.exchanges[0].header(b"host") == provider.url.removeprefix("http://").encode()


async def test_an_answer_before_the_answer_is_passed_over(provider: ScriptedProvider) -> None:
    provider.script = sends(b"HTTP/1.1 103 Early Hints\r\n\r\n", OK)
    [timed], _ = await load(provider.url).run()
    assert (timed.status, timed.size) == (200, 12)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        pytest.param(sends(OK[:-3], close=True), "the connection was closed in the middle of it", id="cut"),
        pytest.param(sends(b"SSH-2.0-OpenSSH\r\n\r\n"), "what came is no HTTP", id="no HTTP"),
        pytest.param(sends(answer(b"no", status=b"503 Unavailable")), "", id="refused"),
    ],
)
async def test_a_first_answer_that_is_no_good_is_the_last(provider: ScriptedProvider, script: object, error: str) -> None:
    provider.script = script  # type: ignore[assignment]
    [timed], took = await load(provider.url, count=5).run()
    assert not timed.is_good
    assert (timed.error, took) == (error, 0.0)
    assert len(provider.exchanges) == 1


async def test_a_connection_that_ends_with_an_answer_is_replaced(provider: ScriptedProvider) -> None:
    provider.script = sends(answer(b"{}", extra=b"Connection: close\r\n"), close=True)
    found, _ = await load(provider.url, count=4).run()
    assert [timed.is_good for timed in found] == [True] * 4
    assert provider.connections == 4


async def test_what_has_not_ended_in_time_does_not_count(provider: ScriptedProvider) -> None:
    provider.script = in_turn(sends(OK), sends(OK), holds())
    found, took = await load(provider.url, count=5, seconds=0.2).run()
    assert len(found) == 2 and all(timed.is_good for timed in found)
    assert took > 0.1


async def test_a_first_answer_that_never_comes_is_told(provider: ScriptedProvider) -> None:
    provider.script = holds()
    [timed], _ = await load(provider.url, seconds=0.1).run()
    assert timed.error == "no answer within 0.1 s"


async def test_a_site_that_goes_away_in_between_is_a_failure_and_not_the_end() -> None:
    server = await asyncio.start_server(lambda *ends: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
    found: list[Timed] = []
    await load(url)._ask(iter(range(3)), found)
    assert [timed.error for timed in found] == ["Connection refused"]


@pytest.mark.parametrize(
    ("headers", "nanoseconds"),
    [
        pytest.param({b"x-upstream-request-start": b"100", b"x-upstream-request-stop": b"350"}, 250, id="both"),
        pytest.param({b"x-upstream-request-start": b"100"}, 0, id="half"),
        pytest.param({}, 0, id="not asked"),
        pytest.param({b"x-upstream-request-start": b"x", b"x-upstream-request-stop": b"9"}, 0, id="no numbers"),
        pytest.param({b"x-upstream-request-start": b"9", b"x-upstream-request-stop": b"1"}, 0, id="a clock set back"),
    ],
)
def test_the_providers_time_is_what_the_proxy_says(headers: dict[bytes, bytes], nanoseconds: int) -> None:
    assert Timed(headers=headers).provider_ns() == nanoseconds
