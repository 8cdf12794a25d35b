"""The addresses behind a provider's name, remembered for as long as a name server may be away."""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from llm_proxy.tasks import Tasks
from llm_proxy.upstream import is_private

# A burst of new connections asks once.
FRESH_SECONDS = 10.0
# While the name server fails, what it said last is used for so long.
LAST_GOOD_SECONDS = 60.0
# Who has an older answer does not wait longer than this for a new one.
PATIENCE = 0.5


class Address(NamedTuple):
    """Where a socket connects to."""

    family: int
    sockaddr: tuple[Any, ...]

    @property
    def host(self) -> str:
        """The IP address."""
        return str(self.sockaddr[0])


Lookup = Callable[[str, int], Awaitable[Sequence[Address]]]


async def system_lookup(host: str, port: int) -> Sequence[Address]:
    """Ask the system.

    Raises:
        OSError: it does not know.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [Address(family, sockaddr) for family, _, _, _, sockaddr in found]


def public(addresses: Sequence[Address]) -> list[Address]:
    """The addresses that are public, so that no name can point the proxy at its own network.

    Raises:
        OSError: there are none.
    """
    left = [address for address in addresses if not is_private(address.host)]
    if not left:
        raise OSError("the name has no public address")
    return left


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """The addresses in turn from each family, beginning with the first one's (RFC 8305 section 4)."""
    rank: dict[int, int] = {}
    places = []
    for order, address in enumerate(addresses):
        turn = rank[address.family] = rank.get(address.family, -1) + 1
        places.append((turn, order))
    return [addresses[order] for _, order in sorted(places)]


class Resolver:
    """Asks for addresses once for all who need them at a time.

    Args:
        lookup: asks the name server.
        clock: a monotonic clock.
    """

    def __init__(self, lookup: Lookup = system_lookup, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup
        self._clock = clock
        self._known: dict[tuple[str, int], tuple[float, Sequence[Address]]] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[Sequence[Address] | Exception]] = {}
        self._tasks = Tasks()

    async def addresses(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host; when nobody can say, those that it had up to a minute ago.

        Raises:
            OSError: the name cannot be resolved.
            UnicodeError: it is no name.
        """
        key = (host, port)
        if _is_literal(host):
            return await self._lookup(host, port)
        asked_at, last = self._known.get(key, (-LAST_GOOD_SECONDS, ()))
        age = self._clock() - asked_at
        if last and age < FRESH_SECONDS:
            return last
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = self._tasks.start(f"lookup of {host}", self._ask(key))
        may_use_last = last and age <= LAST_GOOD_SECONDS
        # One caller's end is not the others'.
        await asyncio.wait([asking], timeout=PATIENCE if may_use_last else None)
        found = asking.result() if asking.done() else last
        if isinstance(found, Exception):
            if may_use_last:
                return last
            raise found
        return found

    async def _ask(self, key: tuple[str, int]) -> Sequence[Address] | Exception:
        try:
            found = await self._lookup(*key)
        except (OSError, UnicodeError) as error:
            return error
        finally:
            del self._asking[key]
        now = self._clock()
        self._known = {host: known for host, known in self._known.items() if now - known[0] <= LAST_GOOD_SECONDS}
        self._known[key] = (now, found)
        return found

    async def close(self) -> None:
        """Ask no more."""
        await self._tasks.close()


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
