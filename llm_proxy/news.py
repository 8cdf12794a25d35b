"""Word between instances, over Redis, that something changed in the database."""

import asyncio
import hashlib
import logging
import pathlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.redis_client import open_redis
from llm_proxy.settings import Settings
from llm_proxy.tasks import Tasks

log = logging.getLogger(__name__)

# How long one command may take.
PATIENCE = 2.0
# After so long a silence the connection is tried: one that a firewall dropped is as silent as one with nothing to say.
SILENCE_SECONDS = 5.0
RETRY_SECONDS = 0.5
# One to listen, one to tell, one more while either is made anew.
CONNECTIONS = 3


def channel_of(settings: Settings) -> str:
    """The name under which instances on one database meet: without what differs between them, such as a password."""
    if settings.db_driver == "postgres":
        where = settings.database_url.reveal().partition("?")[0].rpartition("@")[2].rpartition("//")[2]
    else:
        where = f"{socket.gethostname()}:{pathlib.Path(settings.database_path).absolute()}"
    return f"llm-proxy:changes:{hashlib.sha256(where.encode()).hexdigest()[:16]}"


class News:
    """Says that there is something to look at, and looks when another instance says so.

    It is a hint and nothing else: what changed stands in the database, whose own hints go on. Redis away, nobody waits for it.

    Args:
        look: applies what is new in the database.
    """

    def __init__(self, redis: "Redis", channel: str, look: Callable[[], Awaitable[None]]) -> None:
        self._redis, self._channel, self._look = redis, channel, look
        self._tasks = Tasks()
        self._something = asyncio.Event()
        self._away = False

    def tell(self) -> None:
        """Have the others look; returns at once."""
        self._something.set()

    def open(self) -> None:
        """Begin to tell and to listen."""
        self._tasks.start("telling of changes", self._publish())
        self._tasks.start("listening for changes", self._listen())

    async def close(self) -> None:
        """Tell and listen no more."""
        await self._tasks.close()

    async def _publish(self) -> None:
        while True:
            await self._something.wait()
            # Changes that follow quickly are one piece of news.
            self._something.clear()
            try:
                await self._tasks.within(PATIENCE, "a piece of news", self._redis.publish(self._channel, b"look"))
            except (RedisError, OSError) as error:
                # The others find out by themselves, a little later.
                log.debug("Redis took no word of a change: %s", error)

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear()
            except (RedisError, OSError) as error:
                self._note(away=True, reason=str(error))
            await asyncio.sleep(RETRY_SECONDS)

    async def _hear(self) -> None:
        pubsub = self._redis.pubsub()
        try:
            await self._tasks.within(PATIENCE, "subscription to changes", pubsub.subscribe(self._channel))
            asked = False
            while True:
                heard = pubsub.get_message(timeout=SILENCE_SECONDS)
                message = await self._tasks.within(SILENCE_SECONDS + PATIENCE, "listening to changes", heard)
                if message is None and asked:
                    raise TimeoutError("it has fallen silent")
                if message is None:
                    await self._tasks.within(PATIENCE, "proof of a connection", pubsub.ping())
                elif message["type"] in ("message", "subscribe"):
                    # A subscription may be one that redis-py made anew by itself, and some news may have been missed before it.
                    self._note(away=False)
                    await self._look_now()
                asked = message is None
        except (RedisError, OSError):
            with suppress(RedisError, OSError):
                await self._tasks.within(PATIENCE, "end of a subscription", pubsub.aclose())  # type: ignore[no-untyped-call]
            raise

    async def _look_now(self) -> None:
        # The database's own hints lead to another look when it is back.
        with suppress(DatabaseUnavailable):
            await self._look()

    def _note(self, *, away: bool, reason: str = "") -> None:
        if away != self._away:
            self._away = away
            if away:
                log.warning("Redis brings no word of changes; they are noticed by other ways meanwhile: %s", reason)
            else:
                log.warning("Redis brings word of changes again")


@asynccontextmanager
async def open_news(settings: Settings, look: Callable[[], Awaitable[None]]) -> AsyncIterator[News]:
    """Tell and listen while the block runs, over connections of its own: who listens keeps one for good."""
    async with open_redis(settings.redis_url, CONNECTIONS) as client:
        news = News(client, channel_of(settings), look)
        news.open()
        try:
            yield news
        finally:
            await news.close()
