"""Failures are counted for each address, in bounded memory."""

import pytest

from llm_proxy import failures
from llm_proxy.failures import Failures

HOME, AWAY = "192.0.2.1", "2001:db8::1"


class Clock:
    """Time that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_is_refused_after_so_many_until_the_first_is_a_minute_old() -> None:
    clock = Clock()
    counted = Failures(2, clock)
    for _ in range(2):
        assert counted.refusal(HOME) is None
        counted.count(HOME)
        clock.now += 10
    refusal = counted.refusal(HOME)
    assert refusal and (refusal.code, refusal.headers) == ("too_many_failures", {"Retry-After": "40"})
    assert counted.refusal(AWAY) is None
    clock.now += 40
    assert counted.refusal(HOME) is None
    counted.count(HOME)
    refusal = counted.refusal(HOME)
    assert refusal and refusal.headers == {"Retry-After": "10"}, "the second is fifty seconds old"


def test_of_too_many_addresses_the_one_heard_of_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MANY_ADDRESSES", 3)
    counted = Failures(1, Clock())
    for address in ("a", "b", "c", "a", "d"):
        counted.count(address)
    assert [address for address in "abcd" if counted.refusal(address)] == ["a", "c", "d"]
