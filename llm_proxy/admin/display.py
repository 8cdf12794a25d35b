"""How values look on a page."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from markupsafe import Markup

from llm_proxy.clock import DAY_MS, from_rfc3339, to_rfc3339
from llm_proxy.tokens import Token

THIN_SPACE = "\u202f"
_UNITS = ("KiB", "MiB", "GiB", "TiB")


def when(moment: int | str | None) -> str:
    """A time, as milliseconds or RFC 3339, in UTC; a script shows it in the browser's zone."""
    if moment is None:
        return "–"
    ms = moment if isinstance(moment, int) else from_rfc3339("time", moment)
    text = to_rfc3339(ms)
    assert text
    return Markup('<time datetime="{}">{} UTC</time>').format(text, text[:19].replace("T", " "))


def amount(value: float | None) -> str:
    """A number with its thousands apart."""
    if value is None:
        return "–"
    whole = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")
    return whole.replace(",", THIN_SPACE)


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1024
        if value < 1024 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def percent(ratio: float | None) -> str:
    """A share of one."""
    return "–" if ratio is None else f"{ratio * 100:.1f} %"


def lasting(seconds: float | None) -> str:
    """A length of time by its two largest units."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    left, parts = int(seconds), list[str]()
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, unit)
        if number:
            parts.append(f"{number} {name}")
    return " ".join(parts[:2])


def took(seconds: float | None) -> str:
    """How long a call took, or a part of it, with three figures that say something."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f} ms"
    return f"{seconds:.3g} s" if seconds < 100 else lasting(seconds)


def as_json(value: object) -> str:
    """A document for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def state_of(token: Token, now: int) -> str:
    """A token's state; `expiring` when less than a tenth of its time is left, and less than a day."""
    state = token.status(now)
    if state == "active" and token.expires_at is not None:
        left = token.expires_at - now
        if left < min(DAY_MS, (token.expires_at - token.created_at) / 10):
            return "expiring"
    return state


def twice(values: Iterable[str]) -> list[tuple[str, str]]:
    """Options of a list whose values are also what it shows."""
    return [(value, value) for value in values]


FILTERS: Mapping[str, Callable[..., Any]] = {
    "when": when,
    "amount": amount,
    "size": size,
    "percent": percent,
    "lasting": lasting,
    "took": took,
    "as_json": as_json,
    "twice": twice,
}
