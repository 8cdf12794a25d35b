"""Connections to PostgreSQL: made, lent, kept for the next.

aiopg has a pool as well. It makes one connection at a time while all others wait, knows only the first address of a host, and
on uvloop cannot connect right after a refusal; so only its connections are used.
"""

import asyncio
import select
from typing import Any

import aiopg
import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, parse_dsn

# The types that aiopg would look up for every new connection.
PLAIN = {"enable_hstore": False, "enable_json": False, "enable_uuid": False}
WATCH_SECONDS = 0.25


class Cancellation:
    """Lets a cancellation that came within the block prevail over whatever else the block ends with.

    `wait_for` forgets one for an answer or a failure of the same turn of the loop (Python 3.11); aiopg makes up others.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._before = task, task.cancelling()

    def __bool__(self) -> bool:
        return self._task.cancelling() > self._before

    def __enter__(self) -> "Cancellation":
        return self

    def __exit__(self, *error: object) -> None:
        if self:
            raise asyncio.CancelledError


class Watch:
    """Closes a connection whose other end is gone, so that whoever waits for its answer hears of it.

    The loop would tell, but uvloop stops watching a socket at its first error, and aiopg may have read only what came before it.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._look_later()

    def _look_later(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(WATCH_SECONDS, self._look)

    def _look(self) -> None:
        if self._raw.closed or _is_gone(self._raw.raw.fileno()):
            self._raw.close()
        else:
            self._look_later()

    def end(self) -> None:
        """Watch no more."""
        self._handle.cancel()


def _is_gone(descriptor: int) -> bool:
    poll = select.poll()
    # A hang-up and an error are told unasked; that nothing more will come is told on Linux.
    poll.register(descriptor, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def targets(dsn: str) -> list[dict[str, str]]:
    """The parts of a URL, once for each of its hosts."""
    parts = parse_dsn(dsn)
    hosts, addresses = parts.pop("host", "").split(","), parts.pop("hostaddr", "").split(",")
    ports = parts.pop("port", "5432").split(",")
    number = max(len(hosts), len(addresses))
    wide = [values * number if len(values) == 1 else values for values in (hosts, addresses, ports)]
    return [{**parts, "host": host, "hostaddr": addr, "port": port} for host, addr, port in zip(*wide, strict=True)]


async def connect(dsn: str, seconds: float, options: str = "") -> Any:
    """A connection to the first host of `dsn` that gives one within its share of the time.

    Args:
        options: command-line options of the server, beside those that `dsn` has.
    """
    failure: Exception | None = None
    candidates = targets(dsn)
    for target in candidates:
        # Given by themselves, options would replace those that are in the URL.
        target["options"] = f"{target.get('options', '')} {options}".strip()
        try:
            async with asyncio.timeout(seconds / len(candidates)):
                return await _connect_to(target, seconds)
        except (psycopg2.OperationalError, OSError) as error:
            failure = error
    assert failure is not None
    raise failure


async def _connect_to(target: dict[str, str], seconds: float) -> Any:
    if target["host"] and not target["host"].startswith("/"):
        target = {**target, "hostaddr": await _open_address(target["hostaddr"] or target["host"], int(target["port"]))}
    given: dict[str, Any] = {name: value for name, value in target.items() if value}
    raw = aiopg.Connection(None, seconds, **PLAIN, **given)
    descriptor = raw.raw.fileno()
    try:
        with Cancellation():
            await raw
    except BaseException:
        raw.close()
        # aiopg forgets this watcher of a connection that was refused, and uvloop then refuses the next use of its number.
        asyncio.get_running_loop().remove_writer(descriptor)
        raise
    return raw


async def _open_address(host: str, port: int) -> str:
    """The first address of a host that takes connections; libpq would look it up, and try it, without yielding to the loop."""
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, port)
    address = str(transport.get_extra_info("peername")[0])
    transport.close()
    return address


class Pool:
    """Up to `size` connections, made as they are needed.

    Args:
        seconds: how long a statement may take, and how long making a connection.
        options: command-line options of the server for each connection.
    """

    def __init__(self, dsn: str, size: int, seconds: float, options: str) -> None:
        self._dsn, self._seconds, self._options = dsn, seconds, options
        self._free = asyncio.Semaphore(max(1, size))
        self._idle: list[Any] = []
        self._lent: set[Any] = set()

    async def acquire(self) -> Any:
        """Lend a connection, which has to be given to `release`; waits while all are lent."""
        await self._free.acquire()
        try:
            raw = self._pop() or await connect(self._dsn, self._seconds, self._options)
        except BaseException:
            self._free.release()
            raise
        self._lent.add(raw)
        return raw

    def _pop(self) -> Any:
        while self._idle:
            raw = self._idle.pop()
            if not raw.closed:
                return raw
            raw.close()
        return None

    def release(self, raw: Any) -> None:
        """Take a connection back; one that is broken, or in the middle of something, is closed."""
        self._lent.discard(raw)
        self._free.release()
        if raw.closed or raw.raw.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            raw.close()
        else:
            self._idle.append(raw)

    def clear(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def close(self) -> None:
        """Close all connections, those that are lent too."""
        self.clear()
        for raw in self._lent:
            raw.close()
