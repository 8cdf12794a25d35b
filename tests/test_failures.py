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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("2001:db8::1", "2001:db8::ffff:2", True, id="the addresses of one /64"),
        pytest.param("2001:db8::1", "2001:db8:0:1::1", False, id="two /64"),
        pytest.param("::ffff:192.0.2.1", "192.0.2.1", True, id="IPv4 within IPv6"),
        pytest.param("fe80::1%eth0", "fe80::2%eth0", True, id="with a zone"),
        pytest.param("192.0.2.1", "192.0.2.2", False, id="two IPv4"),
        pytest.param("not:an:address", "not:an:other", False, id="no addresses"),
    ],
)
def test_an_address_of_ipv6_is_as_good_as_its_network(one: str, other: str, same: bool) -> None:
    counted = Failures(1, Clock())
    counted.count(one)
    assert bool(counted.refusal(other)) is same
