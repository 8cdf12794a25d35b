"""The YAML file of provider profiles, read whole or not at all."""

import dataclasses
import difflib
import importlib.resources
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import yaml

from llm_proxy.errors import SettingsError
from llm_proxy.providers.profiles import TOKEN, Auth, Profile, Profiles, Timeouts
from llm_proxy.settings import parse_duration, parse_int

# Keys of the predecessors, or such as people guess, and what to write instead.
RETIRED = {
    "allowed_params": "param_whitelist",
    "api_base": "base_url",
    "api_key": "nothing here: keys are given to providers and projects, through the admin site or the API",
    "auth_header": "auth, such as {header: Authorization, scheme: Bearer}",
    "endpoints": "allowed_endpoints",
    "flush_interval": "nothing: every piece is passed on as it comes",
    "headers": "default_headers or required_headers",
    "idle_connection": "nothing: `connection` bounds how many connections are kept; `idle` is the silence within an answer",
    "max_idle_conns": "max_idle",
    "max_idle_conns_per_host": "max_idle_per_host",
    "methods": "allowed_methods",
    "origins": "allowed_origins",
    "providers": "apis",
    "request": "total",
    "response_header": "first_byte",
    "timeout": "timeouts, such as {connect: 5s, first_byte: 600s, idle: 120s, total: 3600s}",
    "whitelist": "param_whitelist",
}

# Headers that the proxy sets or strips itself: a default for one would be lost, or would break the call.
_OURS = (
    "api-key|authorization|connection|content-length|cookie|expect|host|keep-alive|te|trailer|transfer-encoding|upgrade|x-api-key"
)


def packaged_path() -> pathlib.Path:
    """The file that ships with the program."""
    try:
        folder = str(importlib.resources.files("llm_proxy.config"))
    except ModuleNotFoundError:
        # A plain source tree is not mapped into the package: there the folder stands beside it.
        folder = str(pathlib.Path(__file__).parents[2] / "config")
    return pathlib.Path(folder, "api_providers.yaml")


def load_profiles(path: pathlib.Path) -> Profiles:
    """Read a file of profiles, all of it or not at all.

    Raises:
        SettingsError: it cannot be read or does not validate; the text gives file, line and reason.
    """
    try:
        return _profiles(_File(path), _composed(path))
    except RecursionError:
        raise SettingsError(f"{path}:1: nested too deeply, or an alias contains itself.") from None


def _composed(path: pathlib.Path) -> yaml.Node:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}:{line}: not UTF-8 text.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SettingsError(f"{path}:{line}: a character that YAML does not admit.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SettingsError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}.") from None
    if node is None:
        raise SettingsError(f"{path}:1: the file is empty. It needs default_api and apis.")
    return node


class _File:
    """The file being read: turns its nodes into values, or says in which line and why that cannot be."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def wrong(self, node: yaml.Node, problem: str) -> SettingsError:
        return SettingsError(f"{self.path}:{node.start_mark.line + 1}: {problem}")

    def text(self, node: yaml.Node, what: str) -> str:
        """A scalar as it is written, so that 2023-06-01 stays one, and not a date."""
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "int", "float", "bool", "timestamp"):
            return str(node.value)
        if kind == "null":
            raise self.wrong(node, f"{what} has no value. Give it one, or remove the key.")
        raise self.wrong(node, f"{what} must be a single value.")

    def pairs(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The nodes of key and value by key; a mapping's own keys go before those it merges with `<<`."""
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, f"{what} must be a mapping (key: value).")
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value in node.value:
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merges else self.text(key_node, f"a key of {what}")
            if key in own:
                raise self.wrong(key_node, f"{what}: {key} stands twice, first in line {own[key][0].start_mark.line + 1}.")
            own[key] = (key_node, value)
        if "<<" in own:
            _, value = own.pop("<<")
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                own = {**self.pairs(source, f"what {what} merges"), **own}
        return own

    def parsed(self, node: yaml.Node, what: str, parse: Callable[[str], Any]) -> Any:
        text = self.text(node, what)
        try:
            return parse(text)
        except ValueError as error:
            raise self.wrong(node, f"{what}: {text[:100]!r} is not accepted. Give {error}.") from None


_ALL = "the file"
_Read = Callable[[_File, yaml.Node, str], Any]


def _one(parse: Callable[[str], Any]) -> _Read:
    return lambda file, node, what: file.parsed(node, what, parse)


def _several(parse: Callable[[str], Any], *, empty: bool = False) -> _Read:
    def read(file: _File, node: yaml.Node, what: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise file.wrong(node, f"{what} must be a list.")
        if not node.value and not empty:
            # Empty could mean all or nothing, and one of them would be a hole.
            raise file.wrong(node, f"{what} is empty. Give it entries, or remove the key.")
        return tuple(file.parsed(item, what, parse) for item in node.value)

    return read


def _table(parse: Callable[[str], Any], value: _Read) -> _Read:
    def read(file: _File, node: yaml.Node, what: str) -> Mapping[str, Any]:
        table: dict[str, Any] = {}
        for text, (key_node, value_node) in file.pairs(node, what).items():
            key = file.parsed(key_node, what, parse)
            if key in table:
                raise file.wrong(key_node, f"{what}: {key} stands twice.")
            table[key] = value(file, value_node, _under(what, text))
        return MappingProxyType(table)

    return read


def _record(build: Callable[..., Any], fields: Mapping[str, _Read], required: Collection[str] = ()) -> _Read:
    def read(file: _File, node: yaml.Node, what: str) -> Any:
        pairs = file.pairs(node, what)
        for key, (key_node, _) in pairs.items():
            if key not in fields:
                raise file.wrong(key_node, _unknown(key, what, fields))
        for key in required:
            if key not in pairs:
                raise file.wrong(node, f"{what}: {key} is missing.")
        return build(**{key: fields[key](file, value, _under(what, key)) for key, (_, value) in pairs.items()})

    return read


def _under(what: str, key: str) -> str:
    return key if what == _ALL else f"{what}.{key}"


def _unknown(key: str, what: str, known: Collection[str]) -> str:
    if key in RETIRED:
        return f"{what}: {key} is not a key here. Use {RETIRED[key]}."
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
    return f"{what}: {key[:100]} is not a key here; {hint}"


def _like(pattern: str, expected: str, convert: Callable[[str], str] = str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return convert(text)

    return parse


_name = _like(r"[a-z0-9][a-z0-9_-]{0,63}", "a name of small letters, digits, - and _")
_words = _like(r"(?s).+", "text that is not empty")
_header = _like(TOKEN.pattern, "a header's name, such as Authorization")
_required_header = _like(TOKEN.pattern, "a header's name, such as origin", str.lower)
_default_header = _like(
    rf"(?!(?i:{_OURS})$){TOKEN.pattern}",
    "a header's name; credentials, cookies and framing are the proxy's own to set",
    str.lower,
)
_header_value = _like(r"[!-~](?:[ -~]*[!-~])?", "text of visible ASCII characters")
_scheme = _like(rf"(?:{TOKEN.pattern})?", "one word such as Bearer, or nothing")
_method = _like(
    r"(?!(?:TRACE|TRACK|CONNECT)$)[A-Z][A-Z-]*",
    "a method in capitals, such as GET; TRACE, TRACK and CONNECT are never let through",
)
_origin = _like(
    r"[a-z][a-z0-9+.-]*://[a-z0-9.\[\]:_-]+",
    "an origin exactly as browsers send it, such as https://app.example.com: small letters, no path, no *",
)
_segment = re.compile(r"\*|(?!\.{1,2}$)(?:[A-Za-z0-9._~!$&'()+,;=:@-]|%[0-9A-Fa-f]{2})+")


def _pattern(text: str) -> str:
    start, *segments = text.removesuffix("/**").split("/")
    if start or not text or not all(map(_segment.fullmatch, segments)):
        raise ValueError("a path such as /v1/files/**: whole segments, * for one of them, ** for the rest, only at the end")
    return text


def _base_url(text: str) -> str:
    expected = ValueError("a URL such as https://api.example.com/v1, without user, query or fragment, or nothing")
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        raise expected from None
    if text and not (good and re.fullmatch(r"[!-~]+", text) and not re.search(r"[?#\\]", text)):
        raise expected
    return text.rstrip("/")


def _duration(text: str) -> float:
    if not (seconds := parse_duration(text)):
        raise ValueError("a duration above 0, such as 500ms, 30s, 5m or 1h")
    return seconds


_AUTH = _record(Auth, {"header": _one(_header), "scheme": _one(_scheme)}, ("header",))
_TIMEOUTS = _record(Timeouts, {field.name: _one(_duration) for field in dataclasses.fields(Timeouts)})
_PROFILE = _record(
    dict,
    {
        "base_url": _one(_base_url),
        "auth": _AUTH,
        "auth_for": _table(_pattern, _AUTH),
        "allowed_endpoints": _several(_pattern),
        "allowed_methods": _several(_method),
        "cacheable_post": _several(_pattern, empty=True),
        "param_whitelist": _table(_words, _several(_words)),
        "allowed_origins": _several(_origin),
        "required_headers": _several(_required_header, empty=True),
        "timeouts": _TIMEOUTS,
        "connection": _record(dict, {"max_idle": _one(parse_int), "max_idle_per_host": _one(parse_int)}),
        "default_headers": _table(_default_header, _one(_header_value)),
        "default_query": _table(_pattern, _table(_words, _one(str))),
    },
    ("auth", "allowed_endpoints", "allowed_methods"),
)
_ROOT = _record(dict, {"default_api": _one(_name), "apis": _table(_name, _PROFILE)}, ("default_api", "apis"))


def _profiles(file: _File, root: yaml.Node) -> Profiles:
    read = _ROOT(file, root, _ALL)
    default, apis = read["default_api"], read["apis"]
    if default not in apis:
        node = file.pairs(root, _ALL)["default_api"][1]
        raise file.wrong(node, f"default_api: there is no profile {default!r} under apis.")
    profiles = {name: Profile(name=name, **keys.pop("connection", {}), **keys) for name, keys in apis.items()}
    return Profiles(default, MappingProxyType(profiles))
