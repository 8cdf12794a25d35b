"""A string that does not show itself."""

import re
import weakref

_live: "weakref.WeakSet[Secret]" = weakref.WeakSet()

# Anything shorter would make the log filter blank out ordinary words.
_SHORTEST_LIVE = 8

_SHAPES = re.compile(r"\b(sk-[A-Za-z0-9_-]{0,8})[A-Za-z0-9_-]{8,}|(?i:\b(bearer|basic)\s+)[^\s\"',;]{6,}")


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


def mask(value: str) -> str:
    """A hint of a secret for people: three characters of its beginning, four of its end."""
    return f"{value[:3]}…{value[-4:]}" if len(value) >= 16 else "****"


def looks_masked(value: str) -> bool:
    """Whether a value is the mask of a secret rather than a secret."""
    return "****" in value or "…" in value or "..." in value


def redact(text: str) -> str:
    """The text without any live `Secret` and without what has the shape of a credential."""
    for secret in tuple(_live):
        if secret._value in text:
            text = text.replace(secret._value, "****")
    return _SHAPES.sub(lambda m: f"{m.group(1)}…" if m.group(1) else f"{m.group(2)} ****", text)
