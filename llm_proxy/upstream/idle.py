"""Connections that wait for their next request, bounded in number and time."""

import asyncio
from typing import TYPE_CHECKING

from llm_proxy.providers.profiles import Profile
from llm_proxy.upstream.outgoing import Origin

if TYPE_CHECKING:
    from llm_proxy.upstream.protocol import Connection

# Most servers wait for 60 s or longer; who closes first is never surprised.
IDLE_SECONDS = 55.0


class IdleConnections:
    """The idle connections of one profile.

    Attributes:
        profile: as it was read last; it bounds them.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._by_origin: dict[Origin, list[Connection]] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def take(self, origin: Origin) -> "Connection | None":
        """The connection that was used last, since it is the least likely to be closed by the other side meanwhile."""
        waiting = self._by_origin.get(origin)
        while waiting:
            connection = waiting.pop()
            self._count -= 1
            if connection.is_usable():
                return connection
            connection.abort()
        return None

    def put(self, connection: "Connection") -> bool:
        """Keep a connection; returns whether there was room."""
        waiting = self._by_origin.setdefault(connection.origin, [])
        if len(waiting) >= self.profile.max_idle_per_host or self._count >= self.profile.max_idle:
            return False
        waiting.append(connection)
        self._count += 1
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(IDLE_SECONDS, self._expire)
        return True

    def remove(self, connection: "Connection") -> None:
        """Forget a connection that has ended, if it is here."""
        waiting = self._by_origin.get(connection.origin, [])
        if connection in waiting:
            waiting.remove(connection)
            self._count -= 1

    def _expire(self) -> None:
        """Close what has waited too long; one timer for all, set to when the oldest of the others will have."""
        loop = asyncio.get_running_loop()
        expired = loop.time() - IDLE_SECONDS
        for connection in [c for waiting in self._by_origin.values() for c in waiting if c.idle_since <= expired]:
            connection.abort()
        self._by_origin = {origin: waiting for origin, waiting in self._by_origin.items() if waiting}
        oldest = min((waiting[0].idle_since for waiting in self._by_origin.values()), default=None)
        self._timer = None if oldest is None else loop.call_at(oldest + IDLE_SECONDS, self._expire)

    def close(self) -> None:
        """Close them all."""
        if self._timer:
            self._timer.cancel()
        for connection in [c for waiting in self._by_origin.values() for c in waiting]:
            connection.abort()
