"""A client is who the socket says, or, behind proxies that are trusted, who the last of them saw."""

import pathlib
import socket

import aiohttp
import pytest
from stage.house import open_house, settings_for

from llm_proxy import systemd
from llm_proxy.errors import SettingsError
from llm_proxy.peers import Peer, is_loopback, parse_networks, peer_of

TRUSTED = ("10.0.0.0/8", "2001:db8::/32")


@pytest.mark.parametrize(
    ("socket_address", "forwarded_for", "client"),
    [
        pytest.param("198.51.100.1", "192.0.2.9", "198.51.100.1", id="untrusted peer is not believed"),
        pytest.param("10.0.0.1", "", "10.0.0.1", id="nothing forwarded"),
        pytest.param("10.0.0.1", "192.0.2.9", "192.0.2.9", id="one hop"),
        pytest.param("10.0.0.1", "203.0.113.7, 192.0.2.9", "192.0.2.9", id="what the client wrote itself is not believed"),
        pytest.param("10.0.0.1", "192.0.2.9, 10.0.0.2,10.0.0.3", "192.0.2.9", id="chain of trusted proxies"),
        pytest.param("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3", id="trusted all the way"),
        pytest.param("10.0.0.1", "192.0.2.9, unknown", "10.0.0.1", id="word at the end"),
        pytest.param("10.0.0.1", "unknown, 10.0.0.2", "10.0.0.2", id="word behind a trusted hop"),
        pytest.param("10.0.0.1", ", ,192.0.2.9,", "192.0.2.9", id="empty entries"),
        pytest.param("10.0.0.1", "192.0.2.9:51234", "192.0.2.9", id="address with port"),
        pytest.param("10.0.0.1", "[2001:db9::7]:51234", "2001:db9::7", id="IPv6 with port"),
        pytest.param("10.0.0.1", "2001:db9::7", "2001:db9::7", id="IPv6"),
        pytest.param("2001:db8::1", "192.0.2.9", "192.0.2.9", id="trusted IPv6"),
        pytest.param("::ffff:10.0.0.1", "192.0.2.9", "192.0.2.9", id="trusted IPv4 on an IPv6 socket"),
        pytest.param("::ffff:198.51.100.1", "", "198.51.100.1", id="IPv4 on an IPv6 socket"),
        pytest.param("", "192.0.2.9", "", id="unix socket"),
        pytest.param("/run/llm-proxy.sock", "192.0.2.9", "/run/llm-proxy.sock", id="path of a unix socket"),
    ],
)
def test_client_is_the_rightmost_address_that_is_not_trusted(socket_address: str, forwarded_for: str, client: str) -> None:
    assert peer_of(socket_address, "http", forwarded_for, "", parse_networks(TRUSTED)).address == client


@pytest.mark.parametrize(
    ("socket_address", "forwarded_proto", "scheme"),
    [
        ("10.0.0.1", "https", "https"),
        ("10.0.0.1", "HTTPS", "https"),
        ("10.0.0.1", "https, http", "http"),
        ("10.0.0.1", "", "http"),
        ("10.0.0.1", "gopher", "http"),
        ("198.51.100.1", "https", "http"),
    ],
)
def test_scheme_is_forwarded_by_trusted_proxies_only(socket_address: str, forwarded_proto: str, scheme: str) -> None:
    assert peer_of(socket_address, "http", "", forwarded_proto, parse_networks(TRUSTED)).scheme == scheme


def test_without_trusted_proxies_nothing_is_believed() -> None:
    assert peer_of("127.0.0.1", "http", "192.0.2.9", "https", ()) == Peer("127.0.0.1", "http")


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::2", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_network_that_is_none_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"TRUSTED_PROXIES=10\.0\.0\.0/8,proxy\.local: .*Give networks such as 10\.0\.0\.0/8"):
        parse_networks(["10.0.0.0/8", "proxy.local"])


def test_single_address_is_a_network() -> None:
    assert str(parse_networks(["10.1.2.3/8"])[0]) == "10.0.0.0/8"
    assert peer_of("10.1.2.3", "http", "192.0.2.9", "", parse_networks(["10.1.2.3"])).address == "192.0.2.9"


async def test_sites_answer_clients_without_an_address(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        # Relative, since the path of a unix socket has room for a hundred characters only.
        listening.bind("proxy.sock")
        listening.listen()
        listening.setblocking(False)
        monkeypatch.setattr(systemd, "passed_sockets", lambda: {"proxy": listening})
        settings = settings_for(tmp_path, TRUSTED_PROXIES="10.0.0.0/8")
        async with open_house(settings) as house, aiohttp.ClientSession(connector=aiohttp.UnixConnector("proxy.sock")) as session:
            for path, status in (("/health", 200), ("/metrics", 404), ("/manage/projects", 401), ("/v1/models", 401)):
                async with session.get(f"http://localhost{path}", headers={"X-Forwarded-For": "192.0.2.9"}) as reply:
                    assert reply.status == status, path
            assert [event.client_ip for event in house.events] in ([None], [""])
