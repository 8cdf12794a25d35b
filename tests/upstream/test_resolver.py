"""What is remembered of name servers, and what is not believed."""

import asyncio
import socket
from collections.abc import Sequence

import pytest

from llm_proxy.upstream.resolver import FRESH_SECONDS, LAST_GOOD_SECONDS, Address, Resolver, interleaved, public


def addresses(*hosts: str) -> list[Address]:
    return [Address(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, 443)) for host in hosts]


class NameServer:
    """Says what a test tells it to, and has a clock that a test moves."""

    def __init__(self) -> None:
        self.says: Sequence[Address] | Exception = addresses("192.0.2.1")
        self.asked = 0
        self.now = 1000.0
        self.answers = asyncio.Event()
        self.answers.set()

    async def lookup(self, host: str, port: int) -> Sequence[Address]:
        self.asked += 1
        await self.answers.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture
def server() -> NameServer:
    """A name server in good health."""
    return NameServer()


@pytest.fixture
def resolver(server: NameServer) -> Resolver:
    """What asks it."""
    return Resolver(server.lookup, lambda: server.now)


@pytest.mark.parametrize(
    ("answers", "left"),
    [
        (["8.8.8.8"], ["8.8.8.8"]),
        (["127.0.0.1", "8.8.8.8", "10.0.0.1", "2606:4700::1111", "::1"], ["8.8.8.8", "2606:4700::1111"]),
    ],
)
def test_only_public_addresses_are_left_of_a_name(answers: list[str], left: list[str]) -> None:
    assert [address.host for address in public(addresses(*answers))] == left


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["169.254.169.254", "fd00::1"], ["::ffff:10.0.0.1"], ["fe80::1%eth0"], []])
def test_a_name_without_a_public_address_is_not_connected_to(answers: list[str]) -> None:
    with pytest.raises(OSError, match="no public address"):
        public(addresses(*answers))


def test_the_families_take_turns() -> None:
    given = addresses("2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2")
    order = ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"]
    assert [address.host for address in interleaved(given)] == order


async def test_a_burst_asks_once_and_what_is_fresh_is_not_asked_for(server: NameServer, resolver: Resolver) -> None:
    await asyncio.gather(*(resolver.addresses("provider.example", 443) for _ in range(50)))
    server.now += FRESH_SECONDS - 1
    await resolver.addresses("provider.example", 443)
    assert server.asked == 1
    server.now += 2
    server.says = addresses("192.0.2.2")
    assert (await resolver.addresses("provider.example", 443))[0].host == "192.0.2.2"


async def test_the_last_answer_counts_for_a_minute_while_the_name_server_fails(server: NameServer, resolver: Resolver) -> None:
    good = await resolver.addresses("provider.example", 443)
    server.says = socket.gaierror("SERVFAIL")
    server.now += LAST_GOOD_SECONDS
    assert await resolver.addresses("provider.example", 443) == good
    server.now += 1
    with pytest.raises(OSError, match="SERVFAIL"):
        await resolver.addresses("provider.example", 443)
    server.says = good
    assert await resolver.addresses("provider.example", 443) == good


async def test_the_last_answer_counts_while_the_name_server_is_silent(
    server: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_proxy.upstream.resolver.PATIENCE", 0.01)
    good = await resolver.addresses("provider.example", 443)
    server.now += FRESH_SECONDS
    server.answers.clear()
    assert [await resolver.addresses("provider.example", 443) for _ in range(3)] == [good] * 3
    assert server.asked == 2
    await resolver.close()


async def test_who_gives_up_waiting_does_not_end_the_lookup_of_others(server: NameServer, resolver: Resolver) -> None:
    server.answers.clear()
    waiting = [asyncio.ensure_future(resolver.addresses("provider.example", 443)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    server.answers.set()
    assert (await waiting[1])[0].host == "192.0.2.1"
    assert server.asked == 1


async def test_names_that_are_no_longer_asked_for_are_forgotten(server: NameServer, resolver: Resolver) -> None:
    for number in range(100):
        await resolver.addresses(f"provider{number}.example", 443)
        server.now += 10
    assert len(resolver._known) <= LAST_GOOD_SECONDS / 10 + 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_its_own_answer(host: str) -> None:
    assert [address.host for address in await Resolver().addresses(host, 80)] == [host]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".example", "a..b"])
async def test_a_name_that_cannot_be_resolved_is_an_error(host: str) -> None:
    with pytest.raises((OSError, UnicodeError)):
        await Resolver().addresses(host, 80)
