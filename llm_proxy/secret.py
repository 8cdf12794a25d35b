"""A string that does not show itself."""

import json
import re
import weakref

# Anything shorter would make the log filter blank out ordinary words.
_SHORTEST_LIVE = 8
_WINDOW = 4
# A walk through a text in these strides lands on a whole window inside the last characters of every secret it holds.
_STRIDE = _SHORTEST_LIVE - _WINDOW + 1
_WINDOWS = re.compile(rf"(.{{{_WINDOW}}}).{{0,{_STRIDE - _WINDOW}}}", re.DOTALL)
_FEW = 1000

# What introduces the text that must go. Before `sk-` stands no letter, unless it belongs to an escape of JSON.
_SHAPES = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt]))(sk-)[A-Za-z0-9_-]{8,}"
    r"|\b((?i:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}"
    r"|(://)[^\s/@\"\\]+(?=@)"
)
_MARKS = ("sk-", "bearer", "basic", "://")


class Secret:
    """A secret; `repr`, `str` and JSON are masked, `reveal()` gives the text.

    Args:
        value: the secret's text.
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        if len(value) >= _SHORTEST_LIVE:
            _live.add(self)

    def reveal(self) -> str:
        """The text itself; the caller must not keep or print it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret('****')"

    def __str__(self) -> str:
        return "****"


class _Live:
    """The secrets in use, found in a text in a time that does not grow with their number."""

    def __init__(self) -> None:
        self._secrets: weakref.WeakSet[Secret] = weakref.WeakSet()
        self._by_window: dict[str, list[str]] = {}
        self._room = _FEW

    def add(self, secret: Secret) -> None:
        """Find this one too, at least as long as it lives."""
        self._secrets.add(secret)
        self._room -= 1
        if self._room >= 0:
            _note(self._by_window, secret.reveal())
        else:
            self._forget_the_dead()

    def _forget_the_dead(self) -> None:
        alive, by_window = list(self._secrets), dict[str, list[str]]()
        for secret in alive:
            _note(by_window, secret.reveal())
        self._by_window, self._room = by_window, max(_FEW, len(alive))

    def within(self, text: str) -> list[str]:
        """Those that a text holds, the longest first."""
        windows = _WINDOWS.findall(text)
        if self._by_window.keys().isdisjoint(windows):
            return []
        suspects = {value for window in windows for value in self._by_window.get(window, ())}
        return sorted((value for value in suspects if value in text), key=len, reverse=True)


def _note(by_window: dict[str, list[str]], value: str) -> None:
    """Make a secret known by the windows of its end, as it is, and as JSON or Python would escape it."""
    for form in {value, json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}:
        for start in range(len(form) - _SHORTEST_LIVE, len(form) - _SHORTEST_LIVE + _STRIDE):
            by_window.setdefault(form[start : start + _WINDOW], []).append(form)


_live = _Live()


def mask(value: str) -> str:
    """A hint of a secret for people: three characters of its beginning, four of its end."""
    return f"{value[:3]}…{value[-4:]}" if len(value) >= 16 else "****"


def looks_masked(value: str) -> bool:
    """Whether a value is the mask of a secret rather than a secret."""
    return "****" in value or "…" in value or "..." in value


def redact(text: str) -> str:
    """The text, or JSON, without any live `Secret` and without what has the shape of a credential."""
    for value in _live.within(text):
        text = text.replace(value, "****")
    lowered = text.lower()
    if not any(mark in lowered for mark in _MARKS):
        return text
    return _SHAPES.sub(lambda found: f"{found[found.lastindex or 0]}****", text)
