"""The upstream side on connections of our own."""

from contextlib import aclosing

from llm_proxy.errors import UpstreamError, UpstreamUnavailable
from llm_proxy.settings import Settings
from llm_proxy.tasks import Tasks
from llm_proxy.upstream import Request
from llm_proxy.upstream.answer import ReceivedAnswer
from llm_proxy.upstream.dialing import Dialer
from llm_proxy.upstream.idle import IdleConnections
from llm_proxy.upstream.outgoing import Origin, head_of, is_in_one_piece, is_repeatable, pieces_of, target_of
from llm_proxy.upstream.protocol import Connection
from llm_proxy.upstream.resolver import Resolver
from llm_proxy.upstream.tls import trust


class PoolUpstream:
    """Opens calls on idle connections where there are any, else on new ones."""

    def __init__(self, settings: Settings) -> None:
        self._allow_private = settings.allow_private_upstreams
        self._dialer = Dialer(trust(settings), Resolver())
        # What was connected to on the operator's word never serves a call that must be guarded.
        self._idle: dict[tuple[str, bool], IdleConnections] = {}
        self._tasks = Tasks()

    async def open(self, request: Request) -> ReceivedAnswer:
        """See `Upstream.open`."""
        guarded = not (request.trusted or self._allow_private)
        try:
            target = target_of(request.url)
            data = head_of(request, target)
        except ValueError as error:
            raise UpstreamUnavailable("The provider could not be connected to.") from error
        if guarded and target.is_private:
            raise UpstreamUnavailable("The provider's address is not public.")
        idle = self._idle_for(request, guarded)
        kept = idle.take(target.origin)
        if kept is None:
            fresh = await self._connect(target.origin, idle, request, guarded)
            return await self._exchange(fresh, request, data)
        try:
            return await self._exchange(kept, request, data)
        except UpstreamUnavailable:
            # The provider may have closed it in this moment, but it may as well have begun to work.
            if not (kept.is_silent and is_repeatable(request)):
                raise
        try:
            fresh = await self._connect(target.origin, idle, request, guarded)
        except UpstreamError as error:
            error.sent = True
            raise
        return await self._exchange(fresh, request, data, again=True)

    def _idle_for(self, request: Request, guarded: bool) -> IdleConnections:
        key = (request.profile.name, guarded)
        if (idle := self._idle.get(key)) is None:
            idle = self._idle[key] = IdleConnections(request.profile)
        # It may have been read anew.
        idle.profile = request.profile
        return idle

    async def _connect(self, origin: Origin, idle: IdleConnections, request: Request, guarded: bool) -> Connection:
        seconds = request.timeouts.connect
        made = await self._dialer.connect(lambda: Connection(origin, idle), origin, guarded=guarded, seconds=seconds)
        if made.is_closed:
            raise UpstreamUnavailable("The provider closed the connection before it was asked.")
        return made

    async def _exchange(self, connection: Connection, request: Request, data: bytes, *, again: bool = False) -> ReceivedAnswer:
        whole = is_in_one_piece(request)
        if whole and isinstance(request.body, bytes):
            data += request.body
        answer = connection.begin(request.method, data, request.timeouts.first_byte)
        try:
            if not again:
                request.on_sent()
            if not whole:
                connection.sending = self._tasks.start("body on its way to a provider", _send_body(connection, request))
            await answer.head()
        except BaseException:
            connection.abort()
            raise
        return answer

    async def close(self) -> None:
        """Close what waits; calls have ended before."""
        for idle in self._idle.values():
            idle.close()
        await self._tasks.close()
        await self._dialer.close()


async def _send_body(connection: Connection, request: Request) -> None:
    """Write the rest of a request at the provider's pace, while its answer may already come."""
    try:
        async with aclosing(pieces_of(request)) as pieces:
            async for piece in pieces:
                connection.write(piece)
                await connection.written()
    except Exception as error:
        broken = UpstreamUnavailable("The body could not be sent to the provider to its end.", sent=True)
        broken.__cause__ = error
        connection.end(broken)
    else:
        connection.sending = None
