"""A string that does not show itself."""

import json
import re
import weakref

# Anything shorter would make the log filter blank out ordinary words.
_SHORTEST_LIVE = 8
# In bytes. A walk through a text in windows side by side lands on one inside the last eight bytes of every secret it holds.
_WINDOW = 4
_FEW = 1000
# So many texts of at most so many characters are known to be clean: what calls say of themselves, which is mostly the same.
_MOST_CLEAN = 2000
_LONGEST_CLEAN = 200

_MASK = "****"
# What neither JSON nor Python escapes.
_PLAIN = re.compile(r"[!#-&(-\[\]-~]+")
# What introduces the text that must go, each with a constant beginning, which a search finds ten times as fast. Before `sk-`
# stands no letter, unless it belongs to an escape of JSON. The schemes are looked for in lower case, and what follows is only
# looked at, since it may be a scheme again.
_USER = re.compile(r"(://)[^\s/@\"\\]+(?=@)")
_KEY = re.compile(r"(sk-)(?:(?<![A-Za-z0-9]sk-)|(?<=\\[bfnrt]sk-))[A-Za-z0-9_-]{8,}")
_SCHEMES = {word: re.compile(rf"{word}(?<!\w{word})(?=\s+([a-z0-9._~+/=-]{{6,}}))") for word in ("bearer", "basic")}
# The one letter whose lower case is longer, and would move what follows; another stands in for it.
_LONGER, _STAND_IN = "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "\N{LATIN SMALL LETTER I WITH GRAVE}"


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
        self._by_window: dict[int, list[str]] = {}
        self._room = _FEW
        # Another set for each set of secrets, so that a search that is under way in a thread vouches for nothing here.
        self.clean: set[str] = set()

    def add(self, secret: Secret) -> None:
        """Find this one too, at least as long as it lives."""
        self._secrets.add(secret)
        self._room -= 1
        if self._room >= 0:
            _note(self._by_window, secret.reveal())
        else:
            self._forget_the_dead()
        self.clean = set()

    def _forget_the_dead(self) -> None:
        alive, by_window = list(self._secrets), dict[int, list[str]]()
        for secret in alive:
            _note(by_window, secret.reveal())
        self._by_window, self._room = by_window, max(_FEW, len(alive))

    def within(self, text: str) -> list[str]:
        """Those that a text holds, the longest first."""
        by_window = self._by_window
        found = by_window.keys() & _windows(text.encode("utf-8", "surrogatepass"))
        if not found:
            return []
        suspects = {value for window in found for value in by_window[window]}
        return sorted((value for value in suspects if value in text), key=len, reverse=True)


def _windows(data: bytes) -> list[int]:
    return memoryview(data)[: len(data) - len(data) % _WINDOW].cast("I").tolist() if len(data) >= _WINDOW else []


def _note(by_window: dict[int, list[str]], value: str) -> None:
    """Make a secret known by the windows of its end, as it is, and as JSON or Python would escape it."""
    for form in _forms(value):
        end = form.encode("utf-8", "surrogatepass")[-_SHORTEST_LIVE:]
        for start in range(_WINDOW):
            by_window.setdefault(_windows(end[start : start + _WINDOW])[0], []).append(form)


def _forms(value: str) -> set[str]:
    if _PLAIN.fullmatch(value):
        return {value}
    return {value, json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}


_live = _Live()


def mask(value: str) -> str:
    """A hint of a secret for people: three characters of its beginning, four of its end."""
    return f"{value[:3]}…{value[-4:]}" if len(value) >= 16 else "****"


def looks_masked(value: str) -> bool:
    """Whether a value is the mask of a secret rather than a secret."""
    return "****" in value or "…" in value or "..." in value


def redact(text: str) -> str:
    """The text, or JSON, without any live `Secret` and without what has the shape of a credential.

    It runs in the event loop on every body that is captured, so a search that can find nothing is not made; nor is one that
    found nothing before.
    """
    clean = _live.clean
    if text in clean:
        return text
    redacted = _redacted(text)
    if redacted == text and len(text) <= _LONGEST_CLEAN:
        if len(clean) >= _MOST_CLEAN:
            clean.clear()
        clean.add(text)
    return redacted


def _redacted(text: str) -> str:
    for value in _live.within(text):
        text = text.replace(value, _MASK)
    lowered = text.replace(_LONGER, _STAND_IN).lower()
    if spans := [found.span(1) for word, shape in _SCHEMES.items() if word in lowered for found in shape.finditer(lowered)]:
        text = _without(text, sorted(spans))
    if "://" in text:
        text = _USER.sub(rf"\1{_MASK}", text)
    return _KEY.sub(rf"\1{_MASK}", text)


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    pieces, at = list[str](), 0
    for start, end in spans:
        pieces += (text[at:start], _MASK)
        at = end
    return "".join([*pieces, text[at:]])
