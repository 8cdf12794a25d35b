"""What has come of a provider's answer, for the one who waits for it."""

import asyncio
import math
from collections.abc import Mapping
from typing import Protocol

from llm_proxy.errors import UpstreamError
from llm_proxy.grammar import RawHeaders
from llm_proxy.upstream import Take

# A reader who is so far behind lets the provider wait.
READ_BUFFER = 64 * 1024


class Source(Protocol):
    """The connection that an answer comes from."""

    def go_on(self) -> None:
        """There is room for more."""

    def watch(self, seconds: float) -> None:
        """Call the answer's `silent` when its reader has waited for so long."""

    def abort(self) -> None:
        """Nothing more is wanted."""


class ReceivedAnswer:
    """See `Answer`; the connection fills it.

    Attributes:
        status: 0 until the head has come.
        buffered: bytes of the body that wait for their reader.
        patience: how long the provider may be silent while pieces flow.
        is_seen: its head was handed over, and cannot be taken back.
        is_whole: it came to its end.
    """

    __slots__ = (
        "_error",
        "_pieces",
        "_source",
        "_take",
        "_waiter",
        "buffered",
        "fields",
        "headers",
        "is_seen",
        "is_whole",
        "patience",
        "reason",
        "status",
    )

    def __init__(self, source: Source) -> None:
        self.status = 0
        self.reason = ""
        self.headers: RawHeaders = ()
        self.fields: Mapping[bytes, bytes] = {}
        self.buffered = 0
        self.patience = math.inf
        self.is_seen = False
        self.is_whole = False
        self._pieces: list[bytes] = []
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[bool] | None = None
        # While pieces flow.
        self._take: Take | None = None
        # None once the connection serves others, or nobody.
        self._source: Source | None = source

    def add(self, piece: bytes) -> None:
        """A piece of the body has come."""
        self._pieces.append(piece)
        self.buffered += len(piece)

    def end(self) -> None:
        """The connection is done with it: it is whole, or it has failed."""
        self._source = None
        self.wake()

    def fail(self, error: UpstreamError) -> None:
        """No more of it comes; what is buffered still counts."""
        self._error = error
        self.end()

    def silent(self) -> None:
        """Nothing has come for as long as who waits would wait."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(TimeoutError())

    def wake(self) -> None:
        """Tell who waits that something has come; where pieces flow, hand it over at once."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._take is None or self._source is None:
            waiter.set_result(False)
            return
        # What came may be framing alone, and an empty piece would be taken for the end.
        if data := self.ready():
            self.offer(data)
        if self.patience != math.inf and not waiter.done():
            self._source.watch(self.patience)

    def offer(self, piece: bytes, chunk: bytes = b"") -> bool:
        """Hand a piece over at once, if pieces flow; returns whether it was taken. See `Take`."""
        waiter, take = self._waiter, self._take
        if take is None or waiter is None or waiter.done():
            return False
        try:
            if take(piece, chunk):
                waiter.set_result(True)
        except Exception as error:
            waiter.set_exception(error)
        return True

    async def head(self) -> None:
        """Wait for status and headers.

        Raises:
            UpstreamError: they do not come.
        """
        while not self.status:
            if self._error:
                raise self._error
            await self._woken(math.inf)
        self.is_seen = True

    def ready(self) -> bytes:
        """See `Answer.ready`."""
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        if self.buffered > READ_BUFFER and self._source:
            self._source.go_on()
        self.buffered = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def chunk(self, patience: float = math.inf) -> bytes:
        """See `Answer.chunk`."""
        while not self._pieces:
            if self._error:
                raise self._error
            if self.is_whole:
                return b""
            await self._woken(patience)
        return self.ready()

    async def flow(self, take: Take, patience: float = math.inf) -> bool:
        """See `Answer.flow`."""
        self._take, self.patience = take, patience
        try:
            while True:
                if (data := self.ready()) and take(data):
                    return False
                if self._error:
                    raise self._error
                if self.is_whole:
                    return True
                if await self._woken(patience):
                    return False
        finally:
            self._take = None

    async def _woken(self, patience: float) -> bool:
        """Wait until something has come; whether it was taken already, by who wants a pause now."""
        if self._source and patience != math.inf:
            self._source.watch(patience)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def abort(self) -> None:
        """See `Answer.abort`; a connection whose answer is whole has gone back by itself."""
        if self._source:
            self._source.abort()
