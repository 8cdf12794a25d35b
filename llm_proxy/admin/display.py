"""How values look on a page."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from markupsafe import Markup

from llm_proxy.clock import DAY_MS, from_rfc3339, to_rfc3339
from llm_proxy.tokens import Token

THIN_SPACE = "\u202f"
# From where on, in what. Up to ten thousand every digit is shown.
_MULTIPLES = ((999.5e9, 1e12, "T"), (999.5e6, 1e9, "G"), (999.5e3, 1e6, "M"), (1e4, 1e3, "k"))
_CLOCKS = {"day": "{day}", "minute": "{minute} UTC", "second": "{second} UTC"}
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


def brief(value: float | None) -> str:
    """A number with three digits that count, and what they are multiplied by, once it is long."""
    if value is None:
        return "–"
    for least, unit, name in _MULTIPLES:
        if value >= least:
            shown = value / unit
            return f"{f'{shown:.3g}' if shown < 999.5 else amount(round(shown))}{THIN_SPACE}{name}"
    return amount(value)


def rate(value: float) -> str:
    """How often something happens, given by the second; what is rare, by the minute."""
    value, unit = (value, "s") if value >= 1 else (value * 60, "min")
    return f"{brief(round(value, 1) if value < 100 else round(value))}/{unit}"


def milliseconds(value: float | None) -> str:
    """A time that calls take, with three digits that count."""
    if value is None:
        return "–"
    if value >= 60_000:
        return lasting(value / 1000)
    if value >= 999.5:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms"


def clock(moment: int, kind: str = "minute") -> str:
    """A time of the last days in UTC, short; a script shows it in the browser's zone.

    Args:
        kind: one of `_CLOCKS`.
    """
    text = to_rfc3339(moment) or ""
    shown = _CLOCKS[kind].format(day=text[:10], minute=text[11:16], second=text[11:19])
    return Markup('<time datetime="{}" data-as="{}">{}</time>').format(text, kind, shown)


def minute(moment: int) -> str:
    """A time in UTC as text alone."""
    return (to_rfc3339(moment) or "")[:16].replace("T", " ") + " UTC"


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
    "brief": brief,
    "milliseconds": milliseconds,
    "rate": rate,
    "clock": clock,
    "rfc3339": to_rfc3339,
    "minute": minute,
    "size": size,
    "percent": percent,
    "lasting": lasting,
    "took": took,
    "as_json": as_json,
    "twice": twice,
}
