"""Time as the database and the API write it."""

import datetime
import email.utils
import time
from functools import lru_cache

from llm_proxy.errors import InvalidField

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def to_rfc3339(ms: int | None) -> str | None:
    """Milliseconds since the epoch as RFC 3339 in UTC, `2026-11-21T08:54:37.120Z`."""
    if ms is None:
        return None
    return f"{_second(ms // 1000)}.{ms % 1000:03}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    # Not `fromtimestamp`, whose floats are wrong in the far future.
    return (EPOCH + datetime.timedelta(seconds=seconds)).isoformat()[:19]


def from_rfc3339(field: str, text: object) -> int:
    """Milliseconds since the epoch from RFC 3339 with a zone.

    Raises:
        InvalidField: it is no such time.
    """
    try:
        moment = datetime.datetime.fromisoformat(text if isinstance(text, str) else "")
        if moment.tzinfo is None:
            raise ValueError
        # In UTC even the last moment of year 9999 can be written again, which is not so in every zone.
        return (moment.astimezone(datetime.UTC) - EPOCH) // datetime.timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        raise InvalidField(field, "give a time such as 2026-12-31T23:59:59Z (RFC 3339, with a zone).") from None


def seconds_asked(retry_after: str, now: float) -> float:
    """The seconds that a Retry-After asks for, as a number or a date, 0 when it makes no sense.

    Args:
        now: seconds since the epoch.
    """
    text = retry_after.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(moment.timestamp() - now, 0.0)
