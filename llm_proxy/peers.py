"""Who is at the other end of a connection, behind the proxies that we trust."""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from llm_proxy.errors import SettingsError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


class Peer(NamedTuple):
    """A client: its address, and the scheme it used."""

    address: str
    scheme: str


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks in CIDR form, or single addresses.

    Raises:
        SettingsError: one is neither.
    """
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise SettingsError(
            f"TRUSTED_PROXIES={','.join(texts)}: {error}. Give networks such as 10.0.0.0/8, or addresses."
        ) from error


@lru_cache(maxsize=4096)
def within(text: str, networks: tuple[Network, ...]) -> bool:
    """Whether a text is an address in one of the networks."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


def _without_port(hop: str) -> str:
    """Some proxies write `192.0.2.1:5678` or `[2001:db8::1]:5678`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own."""
    return within(address, LOOPBACK)


def peer_of(socket_address: str, scheme: str, forwarded_for: str, forwarded_proto: str, trusted: tuple[Network, ...]) -> Peer:
    """The client of a request: the socket's peer, or, behind trusted proxies, the rightmost address that is not one of them.

    Args:
        socket_address: the address at the other end of the connection, empty when that has none (a unix socket).
        scheme: http or https, by the socket.
        forwarded_for: X-Forwarded-For, empty when absent.
        forwarded_proto: X-Forwarded-Proto, empty when absent.
    """
    if socket_address.startswith("::ffff:") and "." in socket_address:
        # A socket that systemd passes takes IPv4 as IPv6.
        socket_address = socket_address[len("::ffff:") :]
    if not trusted or not within(socket_address, trusted):
        return Peer(socket_address, scheme)
    proto = forwarded_proto.rpartition(",")[2].strip().lower()
    scheme = proto if proto in ("http", "https") else scheme
    for hop in reversed([_without_port(part.strip()) for part in forwarded_for.split(",") if part.strip()]):
        try:
            ipaddress.ip_address(hop)
        except ValueError:
            # Whoever wrote this was not one of ours; the last address that can be believed is the best one.
            break
        socket_address = hop
        if not within(hop, trusted):
            break
    return Peer(socket_address, scheme)
