"""Sending a document to a sink over HTTP."""

import asyncio
import time
from collections.abc import Callable

import aiohttp
import orjson

from llm_proxy.clock import seconds_asked
from llm_proxy.events.sinks.contract import DELIVERED, Verdict
from llm_proxy.secret import Secret, redact

TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
# A sink that asks for more is asked again sooner.
LONGEST_RETRY_AFTER = 300.0
# More of an answer is not read.
LARGEST_ANSWER = 1024 * 1024
_SHOWN = 500

# These say that our key or the address is wrong, or that it is too early; no event is to blame.
_ABOUT_THE_SINK = frozenset({401, 403, 404, 405, 407, 408, 425, 429, 502, 503, 504})


async def post(
    session: aiohttp.ClientSession, url: str, key: Secret, make: Callable[[], object], now: float | None = None
) -> tuple[Verdict, bytes]:
    """Send the document that `make` makes; what the answer's status means, with its body."""
    # A reply of many pieces takes milliseconds to put together, which running calls must not feel.
    body = await asyncio.to_thread(lambda: orjson.dumps(make()))
    headers = {"Authorization": f"Bearer {key.reveal()}", "Content-Type": "application/json", "Accept-Encoding": "identity"}
    try:
        async with session.post(url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False) as response:
            answer = await _read(response.content)
            moment = time.time() if now is None else now
            return verdict_of(response.status, response.headers.get("Retry-After", ""), answer, moment), answer
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        return Verdict("away", f"no connection: {error}"), b""
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Verdict("failed", f"the connection broke: {type(error).__name__} {error}"), b""


async def _read(content: aiohttp.StreamReader) -> bytes:
    answer = b""
    while len(answer) < LARGEST_ANSWER and (piece := await content.read(LARGEST_ANSWER - len(answer))):
        answer += piece
    return answer


def verdict_of(status: int, retry_after: str, answer: bytes, now: float) -> Verdict:
    """What an answer's status means for what was sent."""
    if 200 <= status < 300:
        return DELIVERED
    said = redact(answer[:_SHOWN].decode("utf-8", "replace"))
    reason = f"{status} {said}".strip()
    pause = seconds_of(retry_after, now)
    if status < 400 or status in _ABOUT_THE_SINK:
        return Verdict("away", reason, pause)
    return Verdict("refused" if status < 500 else "failed", reason, pause)


def seconds_of(retry_after: str, now: float) -> float:
    """The seconds that a Retry-After asks for, within reason, 0 when it makes no sense."""
    return min(seconds_asked(retry_after, now), LONGEST_RETRY_AFTER)
