"""A value is read as an operator writes it, or refused with what is accepted."""

import base64
import re
from collections.abc import Callable
from typing import Any

import pytest

from llm_proxy.secret import Secret
from llm_proxy.settings import TABLE
from llm_proxy.settings.values import (
    one_of,
    parse_address,
    parse_bool,
    parse_count,
    parse_database_url,
    parse_duration,
    parse_encryption_keys,
    parse_event_sync,
    parse_int,
    parse_list,
    parse_path,
    parse_secret,
    parse_secrets,
    parse_size,
    parse_text,
    parse_url,
    some_of,
    written,
)

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        *((parse_bool, text, True) for text in ("true", "1", "yes", "TRUE", "Yes")),
        *((parse_bool, text, False) for text in ("false", "0", "no", "FALSE")),
        (parse_int, "0", 0),
        (parse_int, "007", 7),
        (parse_int, "999999999", 999_999_999),
        (parse_count, "1", 1),
        (parse_count, "010", 10),
        (parse_count, "100000000", 100_000_000),
        (parse_size, "0", 0),
        (parse_size, "1048576", 2**20),
        (parse_size, "10b", 10),
        (parse_size, "10MB", 10**7),
        (parse_size, "64KiB", 2**16),
        (parse_size, "64 kib", 2**16),
        (parse_size, "2gb", 2 * 10**9),
        (parse_size, "1GiB", 2**30),
        (parse_duration, "30", 30.0),
        (parse_duration, "0", 0.0),
        (parse_duration, "500ms", 0.5),
        (parse_duration, "1.5s", 1.5),
        (parse_duration, "30s", 30.0),
        (parse_duration, "5m", 300.0),
        (parse_duration, "1 h", 3600.0),
        (parse_duration, "2d", 172_800.0),
        (parse_address, ":8080", ":8080"),
        (parse_address, "127.0.0.1:0", "127.0.0.1:0"),
        (parse_address, "localhost:65535", "localhost:65535"),
        (parse_address, "[::1]:8080", "[::1]:8080"),
        (parse_path, "/metrics", "/metrics"),
        (parse_path, "/internal/metrics-1", "/internal/metrics-1"),
        (parse_path, "/managed", "/managed"),
        (parse_list, "", ()),
        (parse_list, " a, b,,c ", ("a", "b", "c")),
        (parse_text, "any thing", "any thing"),
        (one_of("json", "text"), "JSON", "json"),
        (some_of("a", "b"), "", ()),
        (some_of("a", "b"), "B, a", ("b", "a")),
        (parse_url, "https://api.lunary.ai", "https://api.lunary.ai"),
        (parse_url, "http://127.0.0.1:8080/base/", "http://127.0.0.1:8080/base/"),
        *((parse_event_sync, text, text) for text in ("100ms", "10ms", "10s", "always", "os")),
        (parse_event_sync, "OS", "os"),
    ],
)
def test_value_is_read(parse: Callable[[str], Any], text: str, value: object) -> None:
    read = parse(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("parse", "text", "accepted"),
    [
        *((parse_bool, text, "true, false, 1, 0, yes or no") for text in ("", "on", "2", "y", "true ")),
        *((parse_int, text, "a whole number, 0 or more") for text in ("", "-1", "1.5", "1e3", "ten", "²", "1_000", "1000000000")),
        *((parse_count, text, "a whole number, 1 or more") for text in ("", "0", "000", "-1", "1000000000")),
        *((parse_size, text, "a size such as") for text in ("", "10XB", "-1", "1.5MB", "MB", "ten")),
        *((parse_duration, text, "a duration such as") for text in ("", "-1s", "1h30m", "5 minutes", "soon", "1e3", "inf")),
        *(
            (parse_address, text, "host:port")
            for text in ("", "8080", "host", "host:", ":65536", ":x", "::1:80", "http://h:80", "a b:80")
        ),
        *(
            (parse_path, text, "a path such as /metrics")
            for text in ("", "metrics", "/", "/a/", "//a", "/{x}", "/a b", "/manage", "/ready/x")
        ),
        *((parse_database_url, text, "postgresql://") for text in ("mysql://u@h/d", "sqlite:///x.db", "host/name")),
        *(
            (parse_encryption_keys, text, "base64 of 32 random bytes")
            for text in ("short", "A" * 43, KEY[:-4], KEY + "AAAA", f"{KEY},x", "é" * 44)
        ),
        (one_of("json", "text"), "xml", "json or text"),
        *((some_of("a", "b"), text, "a list of a, b, each at most once") for text in ("c", "a, a", "a b", "a, c")),
        *(
            (parse_url, text, "a URL that begins with http:// or https://")
            for text in (
                "",
                "api.lunary.ai",
                "ftp://h",
                "https://",
                "https://u:p@h",
                "https://h?a=1",
                "https://h/#a",
                "https://h /",
            )
        ),
        *((parse_event_sync, text, "a duration from 10ms to 10s") for text in ("", "0", "9ms", "11s", "never")),
    ],
)
def test_anything_else_is_refused_with_what_is_accepted(parse: Callable[[str], Any], text: str, accepted: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(accepted)}"):
        parse(text)


@pytest.mark.parametrize(
    ("parse", "text", "values"),
    [
        (parse_secret, "s3cret", ["s3cret"]),
        (parse_database_url, "postgresql://u:p@h:5432/d", ["postgresql://u:p@h:5432/d"]),
        (parse_database_url, "postgres://h/d", ["postgres://h/d"]),
        (parse_secrets, "one, two", ["one", "two"]),
        (parse_secrets, "", []),
        (parse_encryption_keys, f"{KEY}, {OTHER_KEY}", [KEY, OTHER_KEY]),
        (parse_encryption_keys, "", []),
    ],
)
def test_secret_is_read_as_one_that_does_not_show(parse: Callable[[str], Any], text: str, values: list[str]) -> None:
    read = parse(text)
    held = read if isinstance(read, tuple) else (read,)
    assert all(isinstance(secret, Secret) for secret in held)
    assert [secret.reveal() for secret in held] == values


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (10000, "10000"),
        (30.0, "30s"),
        (0.25, "0.25s"),
        (0.0, "0s"),
        (172_800.0, "172800s"),
        (("a", "b"), "a, b"),
        ((), ""),
        (":8080", ":8080"),
        (Secret("hidden"), "****"),
        (Secret(""), ""),
        ((Secret("one"), Secret("two")), "****, ****"),
    ],
)
def test_value_is_written_as_an_operator_would(value: object, text: str) -> None:
    assert written(value) == text


@pytest.mark.parametrize("field", TABLE, ids=lambda field: field.name)
def test_what_is_written_is_read_as_the_same(field: Any) -> None:
    text = written(field.default)
    assert written(field.metadata["parse"](text)) == text
