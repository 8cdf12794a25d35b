"""What is refused before a request is read: its answer, its count, its line in the log."""

import asyncio
import logging

import orjson
import pytest
from aiohttp import http_exceptions

from llm_proxy import guard
from llm_proxy.errors import ApiError
from llm_proxy.grammar import MAX_HEAD_BYTES, MAX_TARGET_BYTES
from llm_proxy.guard import Guard, Limits, refusal, refusal_of

ERROR = ApiError("bad_request", "no")


def connection_from(address: str | None) -> asyncio.BaseTransport:
    return asyncio.BaseTransport({"peername": (address, 1) if address else ""})


@pytest.mark.parametrize(
    ("status", "exception", "code"),
    [
        (400, http_exceptions.BadHttpMessage("Bad 'X'"), "bad_request"),
        (400, http_exceptions.LineTooLong(b"GET /zx9q", MAX_TARGET_BYTES), "target_too_long"),
        (400, http_exceptions.LineTooLong(b"zx9q", MAX_HEAD_BYTES), "headers_too_large"),
        (400, http_exceptions.BadHttpMessage("Too many headers received"), "headers_too_large"),
        (408, ApiError("request_timeout", "slow"), "request_timeout"),
        (500, ValueError("zx9q"), "internal_error"),
        (504, None, "internal_error"),
    ],
)
def test_a_parser_s_error_becomes_ours_and_repeats_nothing(status: int, exception: BaseException | None, code: str) -> None:
    error = refusal_of(status, exception)
    assert error.code == code and "zx9q" not in error.message


def test_the_answer_is_json_with_an_id_and_ends_the_connection() -> None:
    answer = refusal(ApiError("headers_too_large", "much"))
    assert (answer.status, answer.keep_alive, answer.headers["Content-Type"]) == (431, False, "application/json")
    assert len(answer.headers["X-Request-ID"]) == 36
    assert isinstance(answer.body, bytes) and orjson.loads(answer.body)["error"]["code"] == "headers_too_large"


def test_every_refusal_is_counted_and_one_a_minute_of_a_peer_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    watch = Guard(Limits(1, 1, 1), lambda error: counted.append(error.code))
    with caplog.at_level(logging.WARNING):
        for peer in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
            watch.note(ERROR, peer)
        monkeypatch.setattr(guard, "LOG_SECONDS", 0)
        watch.note(ERROR, "10.0.0.1")
    assert counted == ["bad_request"] * 4
    assert [message.split()[3] for message in caplog.messages] == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]


def test_the_peers_that_were_logged_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_MANY_PEERS", 10)
    watch = Guard(Limits(1, 1, 1), lambda error: None)
    for number in range(100):
        watch.note(ERROR, f"10.0.0.{number}")
    assert len(watch._logged) <= 10


def test_connections_are_bounded_together_and_for_each_peer() -> None:
    counted: list[str] = []
    watch = Guard(Limits(1, connections=3, connections_of_peer=2), lambda error: counted.append(error.code))
    first, second, third = connection_from("203.0.113.1"), connection_from("203.0.113.1"), connection_from("203.0.113.1")
    other, last = connection_from("203.0.113.2"), connection_from("203.0.113.3")
    assert [watch.admits(one) for one in (first, second, third, other, last)] == [True, True, False, True, False]
    watch.leaves(first)
    assert watch.admits(third) and not watch.admits(last)
    assert counted == ["overloaded"] * 3


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", None], ids=["IPv4", "IPv6", "unix socket"])
def test_a_proxy_on_this_machine_stands_for_many_peers(address: str | None) -> None:
    watch = Guard(Limits(1, connections=3, connections_of_peer=1), lambda error: None)
    assert [watch.admits(connection_from(address)) for _ in range(4)] == [True, True, True, False]


def test_peers_that_left_are_forgotten() -> None:
    watch = Guard(Limits(1, 10, 10), lambda error: None)
    for number in range(100):
        one = connection_from(f"203.0.113.{number}")
        assert watch.admits(one)
        watch.leaves(one)
    assert not watch._of_peer
