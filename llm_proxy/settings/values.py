"""How the values of settings are written."""

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

from llm_proxy.secret import Secret

SIZES = {"": 1, "b": 1, "kb": 10**3, "kib": 2**10, "mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}
DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
OWN_PATHS = ("manage", "admin", "health", "live", "ready")


def parse_bool(text: str) -> bool:
    """true, false, 1, 0, yes, no."""
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    except KeyError:
        raise ValueError("true, false, 1, 0, yes or no") from None


def parse_int(text: str) -> int:
    """a whole number, 0 or more."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("a whole number, 0 or more")
    return int(text)


def parse_count(text: str) -> int:
    """a whole number, 1 or more."""
    if not re.fullmatch(r"0{0,8}[1-9][0-9]{0,8}", text):
        raise ValueError("a whole number, 1 or more")
    return int(text)


def parse_size(text: str) -> int:
    """a size in bytes, such as 1048576, 10MB or 64KiB."""
    match = re.fullmatch(r"([0-9]{1,15})\s*([A-Za-z]*)", text)
    if not match or match[2].lower() not in SIZES:
        raise ValueError("a size such as 1048576, 10MB or 64KiB")
    return int(match[1]) * SIZES[match[2].lower()]


def parse_duration(text: str) -> float:
    """seconds from a duration, such as 30s, 5m, 1h; a bare number is seconds."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(ms|s|m|h|d|)", text)
    if not match:
        raise ValueError("a duration such as 500ms, 30s, 5m or 1h")
    return float(match[1]) * DURATIONS[match[2] or "s"]


def parse_address(text: str) -> str:
    """host:port, or :port for all addresses; port 0 takes a free one."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\s/]*):([0-9]{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise ValueError("host:port, or :port for all addresses")
    return text


def parse_text(text: str) -> str:
    """any text."""
    return text


def parse_path(text: str) -> str:
    """a path such as /metrics, none of this program's own."""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text) or text.split("/")[1] in OWN_PATHS:
        raise ValueError("a path such as /metrics, none of this program's own")
    return text


def parse_list(text: str) -> tuple[str, ...]:
    """a list, separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_url(text: str) -> str:
    """a URL that begins with http:// or https://."""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
        raise ValueError("a URL that begins with http:// or https://, without user, query and fragment")
    return text


def parse_event_sync(text: str) -> str:
    """a duration from 10ms to 10s, always, or os."""
    if text.lower() in ("always", "os"):
        return text.lower()
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 10:
        raise ValueError("a duration from 10ms to 10s, always, or os")
    return text


def parse_secret(text: str) -> Secret:
    """a secret; NAME_FILE may name a file that holds it."""
    return Secret(text)


def parse_database_url(text: str) -> Secret:
    """postgresql://user:password@host:5432/name; NAME_FILE may name a file that holds it."""
    if text and not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("postgresql://user:password@host:5432/name")
    return Secret(text)


def parse_redis_url(text: str) -> Secret:
    """redis://user:password@host:6379/0, or rediss:// with TLS; NAME_FILE may name a file that holds it."""
    if text and not re.fullmatch(
        r"(rediss?://([^\s/@]*@)?(\[[0-9A-Fa-f:.]+\]|[^\s/:@]+)(:[0-9]{1,5})?|unix://([^\s/@]*@)?/\S+)(/[0-9]*)?(\?\S*)?", text
    ):
        raise ValueError("redis://user:password@host:6379/0, rediss:// for TLS")
    return Secret(text)


def parse_encryption_keys(text: str) -> tuple[Secret, ...]:
    """one or several base64 32-byte keys, newest first."""
    keys = parse_list(text)
    for key in keys:
        try:
            if len(base64.b64decode(key, validate=True)) != 32:
                raise ValueError
        except (ValueError, binascii.Error):
            raise ValueError(
                "base64 of 32 random bytes; several are separated by commas, newest first; `openssl rand -base64 32` makes one"
            ) from None
    return tuple(Secret(key) for key in keys)


def parse_secrets(text: str) -> tuple[Secret, ...]:
    """one or several secrets, separated by commas."""
    return tuple(Secret(part) for part in parse_list(text))


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser that admits only these words."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(" or ".join(choices))
        return text.lower()

    parse.__doc__ = " or ".join(choices) + "."
    return parse


def some_of(*choices: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of lists that admits only these words, each once."""

    def parse(text: str) -> tuple[str, ...]:
        words = tuple(word.lower() for word in parse_list(text))
        if not set(words) <= set(choices) or len(set(words)) != len(words):
            raise ValueError(f"a list of {', '.join(choices)}, each at most once")
        return words

    parse.__doc__ = f"a list of {', '.join(choices)}."
    return parse


SECRET_KINDS = (parse_secret, parse_database_url, parse_redis_url, parse_secrets, parse_encryption_keys)


def written(value: Any) -> str:
    """A value as an operator would write it."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".") + "s"
        case tuple():
            return ", ".join(map(str, value))
        case Secret():
            return str(value) if value else ""
        case _:
            return str(value)
