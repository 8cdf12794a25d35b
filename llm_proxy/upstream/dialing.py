"""How a connection to a provider comes about."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

from llm_proxy.errors import UpstreamError, UpstreamTimeout, UpstreamTLSError, UpstreamUnavailable
from llm_proxy.tasks import Tasks
from llm_proxy.upstream.outgoing import Origin
from llm_proxy.upstream.resolver import Address, Resolver, interleaved, public

# RFC 8305 section 5: how long an address may be silent before the next one is tried beside it.
HEAD_START = 0.25

P = TypeVar("P", bound=asyncio.Protocol)


class Dialer:
    """Connects to providers.

    Args:
        context: what TLS begins with.
        resolver: knows the addresses.
    """

    def __init__(self, context: ssl.SSLContext, resolver: Resolver) -> None:
        self._context = context
        self._resolver = resolver
        self._tasks = Tasks()

    async def connect(self, protocol: Callable[[], P], origin: Origin, *, guarded: bool, seconds: float) -> P:
        """A connection, TLS done where there is any.

        Args:
            protocol: makes the connection's protocol.
            guarded: only public addresses will do.
            seconds: how long it may take.

        Raises:
            UpstreamError: there is none; nothing was sent. What the cause says may hold the provider's address.
        """
        try:
            async with asyncio.timeout(seconds):
                found = await self._resolver.addresses(origin.host, origin.port)
                addresses = interleaved(public(found) if guarded else found)
                return await self._begin(protocol, origin, await self._reach(addresses), seconds)
        except (OSError, ValueError) as error:
            raise _translated(error) from error

    async def _begin(self, protocol: Callable[[], P], origin: Origin, connected: socket.socket, seconds: float) -> P:
        loop = asyncio.get_running_loop()
        if not origin.tls:
            return (await loop.create_connection(protocol, sock=connected))[1]
        _, made = await loop.create_connection(
            protocol,
            sock=connected,
            ssl=self._context,
            server_hostname=origin.host.rstrip("."),
            # The caller's own time runs out first, and says so.
            ssl_handshake_timeout=seconds + 1,
        )
        return made

    async def _reach(self, addresses: Sequence[Address]) -> socket.socket:
        """A socket connected to the first address that answers, each with a head start over the next (RFC 8305)."""
        if len(addresses) == 1:
            return await _socket_to(addresses[0])
        attempts: list[asyncio.Task[socket.socket | OSError]] = []
        winner = None
        try:
            for address in addresses:
                attempts.append(self._tasks.start("connection to one of several addresses", _attempt(address)))
                is_last = len(attempts) == len(addresses)
                if winner := await _first_connected(attempts, None if is_last else HEAD_START):
                    return winner
            failed = attempts[0].result()
            assert isinstance(failed, OSError)
            raise failed
        finally:
            for attempt in attempts:
                _give_up(attempt, winner)

    async def close(self) -> None:
        """Connect no more."""
        await self._tasks.close()
        await self._resolver.close()


async def _first_connected(
    attempts: Sequence["asyncio.Task[socket.socket | OSError]"], seconds: float | None
) -> socket.socket | None:
    """The socket of the first attempt that succeeds in time; None as soon as all have failed, or when the time is up."""
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    while pending := [attempt for attempt in attempts if not attempt.done()]:
        left = None if until is None else until - loop.time()
        done, _ = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for attempt in done:
            if isinstance(connected := attempt.result(), socket.socket):
                return connected
        if not done:
            return None
    return None


async def _attempt(address: Address) -> socket.socket | OSError:
    try:
        return await _socket_to(address)
    except OSError as error:
        return error


async def _socket_to(address: Address) -> socket.socket:
    made = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, address.sockaddr)
    except BaseException:
        made.close()
        raise
    return made


def _give_up(attempt: "asyncio.Task[socket.socket | OSError]", winner: socket.socket | None) -> None:
    """End an attempt; one that has just succeeded leaves a socket behind."""
    attempt.cancel()
    if attempt.done() and not attempt.cancelled():
        left = attempt.result()
        if isinstance(left, socket.socket) and left is not winner:
            left.close()


def _translated(error: Exception) -> UpstreamError:
    match error:
        case ssl.SSLError():
            return UpstreamTLSError("The provider's TLS certificate or handshake is wrong.")
        case TimeoutError():
            return UpstreamTimeout("The provider could not be connected to in time.")
        case _:
            return UpstreamUnavailable("The provider could not be connected to.")
